"""`shoal doctor`: what works here."""

import json

from tests.cli.conftest import Shoal


def test_the_doctor_finds_what_shoal_needs(shoal: Shoal) -> None:
    outcome = shoal("doctor", "--json")
    assert (outcome.code, outcome.out.count("\n")) == (0, 1)
    findings = {finding["name"]: finding for finding in json.loads(outcome.out)["findings"]}
    assert findings.keys() >= {"Python", "memory", "disk", "C++ compiler", "processor", "GPU", "ranks", "torch"}
    for finding in findings.values():
        assert finding["found"]
        assert finding["works"] or not finding["needed"]
        assert finding["works"] or finding["advice"], "what does not work comes with what to do"


def test_the_doctor_s_table_names_every_finding(shoal: Shoal) -> None:
    outcome = shoal("doctor")
    assert outcome.code == 0
    for name in ("Python", "memory", "C++ compiler", "ranks", "gloo answers", "transformers"):
        assert name in outcome.out
