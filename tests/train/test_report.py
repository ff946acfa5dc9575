"""The run's page: whole in itself, and safe whatever the model wrote."""

import re
from pathlib import Path

from shoal.core.run_directory import RunDirectory
from shoal.train.report import write_report
from shoal.train.run import Session, run_training
from tests.train.runs import tiny_recipe


def test_the_page_shows_the_run_needs_nothing_from_outside_and_runs_no_script(corpus: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "tiny")
    run.claim(resume=False, overwrite=False)
    recipe = tiny_recipe(corpus, train={"steps": 4}, evaluation={"every": 2})
    result = run_training(recipe, Session(run, quiet=True))
    assert result is not None
    write_report(run, [{"prompt": "<script>alert(1)</script>", "text": "a < b & [/c] \\[/x]"}])
    page = run.report.read_text()
    assert page.count("<svg") == 4
    assert f"{result['eval_loss']:.4f}" in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    links = re.findall(r"""(?:src|href)=["'](?!#)([^"']+)""", page)
    assert links == [], links
    # 16 sequences of 16, the last of which is cut short by the end of the split
    assert 15 * 16 < result["eval_targets"] <= 16 * 16
    assert (run.model / "README.md").exists()
