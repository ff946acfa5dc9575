// Before anything is drawn: the colours that were chosen last, where the reader has not left it to the system.
"use strict";
const chosen = localStorage.getItem("shoal.theme");
if (chosen) document.documentElement.dataset.theme = chosen;
