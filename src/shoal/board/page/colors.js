// A run keeps its color while it is chosen; each theme has its own, of equal order.

const PALETTES = {
  light: ["#0b6bcb", "#d9480f", "#2b8a3e", "#9c36b5", "#c2255c", "#08808c", "#8a6d00", "#5f3dc4", "#50575e", "#99502a"],
  dark: ["#5aa9f8", "#ff9250", "#63d37c", "#d58bf0", "#ff7aa8", "#4fd3df", "#e3c341", "#a493ff", "#b9c0c8", "#d9a27a"],
};

const INKS = {
  light: { faint: "#667", grid: "#0000000f", pointer: "#0005", selection: "#0b6bcb22" },
  dark: { faint: "#9aa4b0", grid: "#ffffff12", pointer: "#fff5", selection: "#5aa9f833" },
};

export function theme() {
  const asked = document.documentElement.dataset.theme;
  return asked ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

export function palette() {
  return PALETTES[theme()];
}

export function inks() {
  return INKS[theme()];
}

export class Colors {
  constructor() {
    this.places = new Map();
  }

  choose(ids) {
    for (const id of this.places.keys()) if (!ids.includes(id)) this.places.delete(id);
    for (const id of ids) {
      if (this.places.has(id)) continue;
      const counts = PALETTES.light.map((_, place) => [...this.places.values()].filter((other) => other === place).length);
      this.places.set(id, counts.indexOf(Math.min(...counts)));
    }
  }

  // by id, in the theme of now
  now() {
    return new Map([...this.places].map(([id, place]) => [id, palette()[place]]));
  }
}
