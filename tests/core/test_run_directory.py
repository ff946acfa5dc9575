"""A run's folder is never taken over by accident."""

from pathlib import Path

import pytest

from shoal.core.errors import InputError
from shoal.core.run_directory import RunDirectory


def test_a_new_run_makes_its_folder(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "a")
    run.claim(resume=False, overwrite=False)
    assert run.root.is_dir()


@pytest.mark.parametrize(("resume", "overwrite"), [(True, False), (False, True)])
def test_a_run_that_is_there_is_claimed_only_by_a_flag(tmp_path: Path, resume: bool, overwrite: bool) -> None:
    run = RunDirectory(tmp_path / "a")
    run.claim(resume=False, overwrite=False)
    run.metrics.write_text("{}\n")
    with pytest.raises(InputError, match=r"a run is there already; .* --resume, .* --overwrite"):
        run.claim(resume=False, overwrite=False)
    run.claim(resume=resume, overwrite=overwrite)
    assert run.metrics.read_text() == "{}\n"


def test_a_run_goes_on_where_it_lies() -> None:
    assert RunDirectory(Path("runs/a")).again("pretrain", 2) == "shoal pretrain runs/a/recipe.yaml --resume --workers 2"
    elsewhere = RunDirectory(Path("/data/my runs/a")).again("finetune", 1)
    assert elsewhere == "shoal finetune '/data/my runs/a/recipe.yaml' --resume --runs '/data/my runs'"


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("x")
    with pytest.raises(InputError, match="runs/a: no folder can be made there"):
        RunDirectory(tmp_path / "runs" / "a").claim(resume=False, overwrite=False)
