import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from torch import Tensor

from crane import load, load_dataset
from crane.cli import main
from crane.cli.recommend import _read_users
from crane.config import RunConfig
from crane.models import MODELS, LightGCN, Loss
from crane.training.folder import RunFolder
from crane_kernels import dispatch, extension, use_implementation

SMALL = ("--model", "lightgcn", "--set", "model.dim=8", "training.batch_size=128", "training.eval_every=1")


@dataclass
class Result:
    code: int
    out: str
    err: str


class Crane:
    """Calls the command in a folder of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Result:
        self.capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *self.capsys.readouterr())


@pytest.fixture
def crane(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crane:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return Crane(capsys)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    arguments = ["train", "--data", str(tiny_data), *SMALL, "training.epochs=3", "--threads", "1", "--output", str(run)]
    assert main(arguments) == 0
    return run


def test_train_tells_about_each_epoch_and_the_result(crane: Crane, tiny_data: Path) -> None:
    result = crane("train", "--data", tiny_data, *SMALL, "training.epochs=3", "--seed", "4", "--output", "run")
    assert (result.code, result.err) == (0, "")
    lines = [line for line in result.out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert "recall@20 0." in lines[0]
    assert "at most 0:00:0" in lines[0]
    assert "best epoch" in result.out
    assert "\x1b" not in result.out
    config = RunConfig.load(Path("run/config.yaml"))
    assert (config.model, config.seed, config.model_config.dim, config.training.epochs) == ("lightgcn", 4, 8, 3)
    assert config.data.path == str(tiny_data)


def test_train_reads_a_file_under_arguments_under_set(crane: Crane, tiny_data: Path) -> None:
    text = "model: {name: lightgcn, dim: 4}\nseed: 1\ntraining: {epochs: 2, batch_size: 64, patience: 5}\n"
    Path("c.yaml").write_text(text)
    arguments = ("--config", "c.yaml", "--data", tiny_data, "--seed", "2", "--set", "seed=3", "training.epochs=1")
    assert crane("train", *arguments, "--output", "run").code == 0
    config = RunConfig.load(Path("run/config.yaml"))
    assert (config.seed, config.training.epochs, config.training.batch_size, config.model_config.dim) == (3, 1, 64, 4)


def test_train_makes_a_folder_named_after_model_and_data(crane: Crane, tiny_data: Path) -> None:
    for _ in range(2):
        assert crane("train", "--data", tiny_data, *SMALL, "training.epochs=1").code == 0
    runs = list(Path("runs").iterdir())
    assert len(runs) == 2
    assert all(run.name.startswith("lightgcn-tiny-") for run in runs)


def test_runs_of_one_second_get_a_folder_each(crane: Crane, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crane.cli.train.default_folder", lambda config: Path("runs/now"))
    for _ in range(2):
        assert crane("train", "--data", tiny_data, *SMALL, "training.epochs=1").code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["now", "now-2"]
    assert crane("train", "--data", tiny_data, *SMALL, "training.device=cuda:77").code == 2
    assert len(list(Path("runs").iterdir())) == 2


def test_a_data_path_holds_from_any_folder(
    crane: Crane, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_data.parent)
    run = tmp_path / "run"
    assert crane("train", "--data", "tiny", *SMALL, "training.epochs=1", "--output", run).code == 0
    monkeypatch.chdir(tmp_path)
    assert crane("evaluate", run).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "lightgcn"), "there is no data set to train on: give --data demo, or --data and the path"),
        (("--data", "nowhere"), "nowhere"),
        (("--data", "TINY", "--model", "lightgnc"), "did you mean lightgcn?"),
        (
            ("--data", "TINY", *SMALL, "training.epoch=3"),
            "unknown setting training.epoch, did you mean training.epochs?",
        ),
        (("--data", "TINY", *SMALL, "model=freedom"), "--model lightgcn and --set model=freedom both name the model"),
        (("--data", "TINY", *SMALL, "model.layers=two"), "model.layers must be an integer, found the text 'two'"),
        (("--data", "TINY", "--config", "none.yaml"), "cannot read the configuration none.yaml: No such file"),
        (("--data", "TINY", *SMALL, "model.dim=1000000000"), "lightgcn on tiny does not fit into the memory, expected"),
        (("--data", "TINY", *SMALL, "model.dim=100000000000000000"), "lightgcn on tiny does not fit into the memory"),
        (("--data", "TINY", *SMALL, "--threads", "0"), "threads must be between 1 and 1024, found 0"),
        (("--data", "TINY", *SMALL, "--threads", "9999"), "threads must be between 1 and 1024, found 9999"),
        (("--data", "TINY", *SMALL, "--output", "full"), "the output folder full is not empty"),
        (("--data", "TINY", *SMALL, "--output", "full/file"), "the output folder full/file is a file"),
        (("--data", "TINY", *SMALL, "--output", "full/file/run"), "the output folder full/file/run cannot be made"),
        (("--data", "TINY", *SMALL, "--seed", "one"), "argument --seed: invalid int value: 'one'"),
        (("--data", "TINY", *SMALL, "training.device=cuda:77"), "training.device is cuda:77, but torch finds"),
        (("--data", "TINY", *SMALL, "--output", "/proc/none/run"), "the output folder /proc/none/run cannot be made: "),
        (("--data", "TINY", *SMALL, "--output", ""), "argument --output: found nothing, expected a path"),
        (("--data", ""), "data.path is empty, expected a folder, a file or 'demo'"),
        (("--resume", ""), "argument --resume: found nothing, expected a path"),
        (("--resume", "nowhere"), "the run folder nowhere does not exist"),
        (("--resume", "full"), "full is not a run folder: it has no config.yaml"),
        (("--resume", "full", "--seed", "3"), "so --seed cannot be given with it"),
        (("--resume", "full", "--set", "seed=3"), "so --set cannot be given with it"),
        (("--date", "demo"), "unrecognized arguments: --date demo"),
    ],
)
def test_train_refuses_in_one_sentence_and_writes_nothing(
    crane: Crane, tiny_data: Path, arguments: tuple[str, ...], message: str
) -> None:
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    result = crane("train", *[str(tiny_data) if a == "TINY" else a for a in arguments])
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    assert result.out == ""
    assert sorted(str(path) for path in Path().rglob("*")) == ["full", "full/file"]


@pytest.mark.parametrize("content", ["{", "[]", '{"threads": 2}'])
def test_resuming_names_a_damaged_file(crane: Crane, finished: Path, content: str) -> None:
    shutil.copytree(finished, "damaged")
    Path("damaged/environment.json").write_text(content)
    result = crane("train", "--resume", "damaged")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("crane train: damaged/environment.json is damaged: ")
    assert result.err.count("\n") == 1


def test_data_that_are_no_section_are_named(crane: Crane) -> None:
    Path("c.yaml").write_text("model: lightgcn\ndata: demo\n")
    result = crane("train", "--config", "c.yaml")
    assert (result.code, result.err) == (2, "crane train: data must be a mapping of settings, found the text 'demo'\n")


def test_resuming_a_finished_run_changes_nothing(crane: Crane, finished: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {
            str(path): path.read_bytes() for path in finished.rglob("*") if path.suffix != ".png" and path.is_file()
        }

    before = contents()
    result = crane("train", "--resume", finished)
    assert result.code == 0
    assert "all epochs done" in result.out
    assert contents() == before


def test_ending_it_while_data_are_read_leaves_nothing(
    crane: Crane, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crane.cli.train.load_dataset", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    result = crane("train", "--data", tiny_data, *SMALL, "--output", "run")
    assert (result.code, result.out, result.err) == (143, "", "interrupted\n")
    assert not Path("run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupting_says_how_to_continue(tiny_data: Path, tmp_path: Path, number: int, code: int) -> None:
    run = tmp_path / "run"
    arguments = ["train", "--data", str(tiny_data), *SMALL, "training.epochs=100000", "training.patience=100000"]
    command = [sys.executable, "-P", "-m", "crane", *arguments, "--output", str(run)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(number)
    try:
        error = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == code, error
    assert error.count("\n") == 1
    assert error.startswith("interrupted, ")
    assert f"continue with: crane train --resume {run}" in error
    state = RunFolder(run).checkpoints.load_state()
    assert state is None or re.search(rf"\b{state.epoch} epochs? kept; ", error)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_that_a_library_loses_ends_training_all_the_same(
    crane: Crane, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    class Losing(LightGCN):
        def begin_epoch(self, generator: np.random.Generator) -> None:
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), number)

    monkeypatch.setitem(MODELS, "lightgcn", Losing)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    result = crane("train", "--data", tiny_data, *SMALL, "training.epochs=3", "--output", "run")
    signal.signal(signal.SIGINT, before)
    assert result.code == code
    assert result.err == "interrupted, 0 epochs kept; continue with: crane train --resume run\n"


def test_divergence_is_one_sentence_and_exit_code_one(
    crane: Crane, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Diverging(LightGCN):
        def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Loss:
            loss = super().loss(users, positives, negatives)
            return Loss(loss.total * float("nan"), {"bpr": loss.parts["bpr"] * float("nan")})

    monkeypatch.setitem(MODELS, "lightgcn", Diverging)
    result = crane("train", "--data", tiny_data, *SMALL, "training.epochs=3", "--output", "run")
    assert result.code == 1
    assert "epoch 1, step 1 of 4: the loss part 'bpr' is nan" in result.err
    assert result.err.count("\n") == 1


def test_evaluate_prints_what_training_measured(crane: Crane, finished: Path) -> None:
    state = RunFolder(finished).checkpoints.load_state()
    assert state is not None
    assert state.test is not None
    result = crane("evaluate", finished)
    assert result.code == 0
    for k in (5, 10, 20, 50):
        assert f"{state.test[f'recall@{k}']:.4f}" in result.out
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    validation = json.loads(lines[state.best_epoch - 1])["validation"]
    assert f"{validation['ndcg@10']:.4f}" in crane("evaluate", finished, "--split", "validation").out


def test_evaluate_can_mask_validation_items(crane: Crane, finished: Path) -> None:
    plain, masked = (crane("evaluate", finished, *extra).out for extra in ((), ("--mask-validation",)))
    recall = [float(out.split("recall")[1].split()[1]) for out in (plain, masked)]
    assert recall[1] >= recall[0]
    assert plain != masked


def test_evaluate_refuses_to_mask_validation_items_at_validation(crane: Crane, finished: Path) -> None:
    result = crane("evaluate", finished, "--split", "validation", "--mask-validation")
    assert (result.code, result.out) == (2, "")
    assert "so it cannot be given with --split validation" in result.err


def test_evaluate_looks_at_validation_until_a_run_is_finished(crane: Crane, finished: Path) -> None:
    shutil.copytree(finished, "unfinished")
    state = json.loads(Path("unfinished/checkpoints/state.json").read_text())
    Path("unfinished/checkpoints/state.json").write_text(json.dumps(state | {"finished": None, "test": None}))
    assert "validation, epoch " in crane("evaluate", "unfinished").out
    assert "test, epoch " in crane("evaluate", "unfinished", "--split", "test").out
    assert "test, epoch " in crane("evaluate", finished).out


def test_resuming_elsewhere_says_what_changed(crane: Crane, finished: Path) -> None:
    shutil.copytree(finished, "moved")
    began = json.loads(Path("moved/environment.json").read_text())
    began["versions"]["torch"] = "2.0"
    began["operations"]["spmm"]["implementation"] = "another"
    began["instruction_set"], began["devices"] = "one", ["cpu", "cuda:0 A"]
    Path("moved/environment.json").write_text(json.dumps(began))
    assert crane("train", "--resume", finished).err == ""
    now = json.loads((finished / "environment.json").read_text())["operations"]["spmm"]["implementation"]
    expected = [f"torch 2.0, now {torch.__version__}", f"instruction set one, now {extension.instruction_set()}"]
    expected += ["devices cpu, cuda:0 A, now cpu", f"spmm by another, now {now}"]
    if not torch.cuda.device_count():
        error = crane("train", "--resume", "moved").err
        assert error.endswith(f"not bit for bit as it would end: {'; '.join(expected)}\n")
    began["operations"]["spmm"] = {}
    Path("moved/environment.json").write_text(json.dumps(began))
    assert "environment.json is damaged: " in crane("train", "--resume", "moved").err


@pytest.mark.skipif(extension.missing() is not None, reason=f"{extension.missing()}")
def test_an_operation_refused_in_mid_training_says_how_to_continue(
    crane: Crane, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = dispatch._registry["masked_topk"]
    unwilling = tuple(dataclasses.replace(one, refuses=lambda *_: "it does not want to") for one in known)
    monkeypatch.setitem(dispatch._registry, "masked_topk", unwilling)
    with use_implementation(masked_topk="cpp"):
        result = crane("train", "--data", tiny_data, *SMALL, "training.epochs=1", "--output", "run")
    assert result.code == 1
    assert result.err == (
        "crane train: masked_topk: implementation 'cpp' was requested but it does not want to; "
        "continue with: crane train --resume run\n"
    )


@pytest.mark.parametrize("command", [("evaluate",), ("recommend", "--users", "all")])
def test_runs_that_are_none_are_refused(crane: Crane, command: tuple[str, ...]) -> None:
    result = crane(command[0], "nowhere", *command[1:])
    assert (result.code, result.out) == (2, "")
    assert result.err == f"crane {command[0]}: the run folder nowhere does not exist\n"


def test_recommend_prints_a_table(crane: Crane, finished: Path) -> None:
    result = crane("recommend", finished, "--users", "u7, u3", "--k", "4")
    assert result.code == 0
    rows = [line.split() for line in result.out.splitlines() if line.strip().startswith("u")]
    expected = load(finished).recommend(["u7", "u3"], 4).to_pylist()
    assert rows[0] == ["user", "rank", "item", "score"]
    assert [row[:3] for row in rows[1:]] == [[r["user"], str(r["rank"]), r["item"]] for r in expected]


def test_ids_in_brackets_are_printed_as_they_are(crane: Crane) -> None:
    lines = ["user,item", *(f"[u{u}],i[/{i}]" for u in range(6) for i in range(u % 2, 9, 2))]
    Path("brackets.csv").write_text("\n".join(lines) + "\n")
    arguments = ("--data", "brackets.csv", *SMALL, "training.epochs=1", "data.ratios=[9,0,1]", "training.patience=null")
    assert crane("train", *arguments, "--output", "run").code == 0
    result = crane("recommend", "run", "--users", "[u1]", "--k", "1")
    assert result.code == 0
    assert re.search(r"\[u1\] +1 +i\[/\d\] ", result.out)


def test_recommend_names_users_who_have_all_items(crane: Crane) -> None:
    pairs = [f"u{user},i{item}" for user in range(7) for item in range(0, 9, 1 if user == 3 else 2)]
    Path("pairs.csv").write_text("\n".join(["user,item", *pairs]) + "\n")
    arguments = ("--data", "pairs.csv", *SMALL, "training.epochs=1", "training.patience=null", "data.ratios=[9,0,1]")
    assert crane("train", *arguments, "--output", "run").code == 0
    result = crane("recommend", "run", "--users", "u3,u4", "--k", "1")
    assert result.code == 0
    assert result.out.endswith("no item is left for 1 user: u3\n")
    assert "no item is left" not in crane("recommend", "run", "--users", "u4", "--k", "1").out


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_recommend_writes_files_of_unseen_items(crane: Crane, finished: Path, suffix: str) -> None:
    result = crane("recommend", finished, "--users", "all", "--k", "5", "--output", f"out.{suffix}")
    assert result.code == 0
    assert f"300 rows written to out.{suffix}" in result.out
    assert "and 295 more rows\n" in result.out
    read = pyarrow.csv.read_csv if suffix == "csv" else pyarrow.parquet.read_table
    table = read(f"out.{suffix}")
    assert set(table.column_names) == {"user", "item", "rank", "score"}
    assert table.num_rows == 60 * 5
    dataset = load_dataset(RunConfig.load(finished / "config.yaml").data)
    for masked, splits in (("all", (dataset.train, dataset.validation, dataset.test)), ("train", (dataset.train,))):
        assert crane("recommend", finished, "--users", "all", "--output", f"{masked}.csv", "--mask", masked).code == 0
        rows = pyarrow.csv.read_csv(f"{masked}.csv").to_pylist()
        given = {(row["user"], row["item"]) for row in rows}
        for split in (dataset.train, dataset.validation, dataset.test):
            known = set(zip(dataset.user_ids[split.users], dataset.item_ids[split.items], strict=True))
            assert bool(known & given) is not any(split is one for one in splits)


def test_recommend_reads_users_from_a_file(crane: Crane, finished: Path) -> None:
    Path("users.txt").write_text("u1\n\nu2\nu1\n")
    result = crane("recommend", finished, "--users", "@users.txt", "--k", "1", "--output", "out.csv")
    assert result.code == 0
    assert pyarrow.csv.read_csv("out.csv")["user"].to_pylist() == ["u1", "u2"]
    Path("users.txt").write_bytes("u1\r\nu\u20282\ru\x0b3\nu2".encode())  # ids may hold what ends no line of a file
    assert _read_users("@users.txt") == ["u1", "u\u20282", "u\x0b3", "u2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--users", "u1,nobody"), "nobody"),
        (("--users", "@missing.txt"), "the file 'missing.txt' cannot be read: No such file or directory"),
        (("--users", "@"), "users: found '@' without the name of a file after it"),
        (("--users", "u1", "--output", "/proc/out.csv"), "output: the file '/proc/out.csv' cannot be written: "),
        (("--users", "u1", "--output", ""), "argument --output: found nothing, expected a path"),
        (("--users", "7"), "has ids such as u0: 7"),
        (("--users", ","), "users"),
        (("--users", "u1", "--k", "0"), "k: found 0"),
        (("--users", "u1", "--output", "out.txt"), "out.txt"),
        (("--users", "u1", "--output", "none/out.csv"), "none"),
        ((), "the following arguments are required: --users"),
    ],
)
def test_recommend_refuses_in_one_sentence(
    crane: Crane, finished: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = crane("recommend", finished, *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_a_fixed_number_of_epochs_needs_no_validation(crane: Crane, tiny_data: Path) -> None:
    arguments = ["--data", tiny_data, *SMALL, "training.epochs=2", "data.ratios=[9,0,1]"]
    result = crane("train", *arguments, "--output", "run")
    assert result.code == 2
    assert "training.patience=null" in result.err
    result = crane("train", *arguments, "training.patience=null", "--output", "run")
    assert (result.code, result.err) == (0, "")
    assert "no validation interactions: all 2 epochs, the last one is kept" in result.out
    assert "best epoch 2 of 2" in result.out
    assert crane("recommend", "run", "--users", "u1").code == 0
    assert crane("evaluate", "run").code == 0
    assert "tiny has no validation interactions" in crane("evaluate", "run", "--split", "validation").err


def test_an_unfinished_run_says_how_to_finish_it(crane: Crane, finished: Path) -> None:
    shutil.copytree(finished, "killed")
    Path("killed/export.safetensors").unlink()
    result = crane("recommend", "killed", "--users", "u1")
    assert (result.code, result.out) == (2, "")
    assert result.err.endswith("finish it with crane train --resume killed\n")
    assert crane("train", "--resume", "killed").code == 0
    assert crane("recommend", "killed", "--users", "u1").code == 0
    assert Path("killed/export.safetensors").read_bytes() == (finished / "export.safetensors").read_bytes()
    assert Path("killed/checkpoints/state.json").read_bytes() == (finished / "checkpoints/state.json").read_bytes()


def test_a_damaged_export_is_made_again(crane: Crane, finished: Path) -> None:
    shutil.copytree(finished, "damaged")
    sound = Path("damaged/export.safetensors").read_bytes()
    Path("damaged/export.safetensors").write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    result = crane("recommend", "damaged", "--users", "u1")
    assert (result.code, result.out) == (2, "")
    assert result.err.endswith("; make it again with crane train --resume damaged\n")
    assert crane("train", "--resume", "damaged").code == 0
    assert Path("damaged/export.safetensors").read_bytes() == sound


@pytest.mark.parametrize("command", [("train", "--resume"), ("evaluate",)], ids=lambda command: command[0])
def test_a_configuration_that_lost_settings_is_refused(crane: Crane, finished: Path, command: tuple[str, ...]) -> None:
    shutil.copytree(finished, "cut")
    text = Path("cut/config.yaml").read_text()
    Path("cut/config.yaml").write_text(text[: text.index("  epochs:")] + "  epochs: 9\n")
    result = crane(*command, "cut")
    assert (result.code, result.out) == (2, "")
    assert "config.yaml is damaged: it lacks evaluation." in result.err
    assert result.err.count("\n") == 1


def test_a_run_that_lost_its_checkpoint_does_not_begin_again(crane: Crane, finished: Path) -> None:
    shutil.copytree(finished, "lost")
    shutil.rmtree("lost/checkpoints")
    metrics = Path("lost/metrics.jsonl").read_bytes()
    result = crane("train", "--resume", "lost")
    assert (result.code, result.out) == (2, "")
    assert "the run lost has lost its checkpoint: metrics.jsonl tells of 2 epochs at least" in result.err
    assert Path("lost/metrics.jsonl").read_bytes() == metrics


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_output_that_cannot_be_written_is_one_sentence(tiny_data: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-P", "-m", "crane", "data", str(tiny_data)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert done.returncode == 1
    assert done.stderr == "crane data: standard output cannot be written: No space left on device\n"


def test_version(crane: Crane) -> None:
    assert crane("--version").out == f"crane {importlib.metadata.version('crane-recommender')}\n"


def test_data_describes_and_checks(crane: Crane, tiny_data: Path) -> None:
    result = crane("data", tiny_data)
    assert result.code == 0
    assert "60 users, 40 items, 600 interactions" in result.out
    cells = [re.split(r"\s{2,}", line.strip()) for line in result.out.splitlines()]
    found = {row[0]: row[1] for row in cells if len(row) == 2}
    assert found["interactions a user, train"] == "8 to 8, median 8"
    assert found["test interactions that are training ones too"] == "0"


def test_data_takes_settings_and_counts_empty_features(crane: Crane) -> None:
    Path("shop").mkdir()
    lines = ["who,what", *(f"{u},{i}" for u in range(6) for i in range(5))]
    Path("shop/interactions.csv").write_text("\n".join(lines) + "\n")
    matrix = np.ones((5, 3), np.float32)
    matrix[1] = 0
    np.save("shop/image_feat.npy", matrix)
    Path("shop/item_ids.txt").write_text("0\n1\n2\n3\n4\n")
    result = crane("data", "shop", "--set", "data.user_column=who", "--set", "data.item_column=what")
    assert (result.code, result.err) == (0, "")
    assert "items whose image features are all zero" in result.out
    assert [line.split()[-1] for line in result.out.splitlines() if "all zero" in line] == ["1"]


def test_data_refuses_in_one_sentence(crane: Crane) -> None:
    result = crane("data", "nowhere")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("crane data: ")
    assert result.err.count("\n") == 1


def test_info_says_what_serves_each_operation(crane: Crane) -> None:
    result = crane("info")
    assert result.code == 0
    for expected in (torch.__version__, "triton", "extension", "instruction set", "threads", "devices", "masked_topk"):
        assert expected in result.out
    with use_implementation(spmm="reference"):
        row = next(line for line in crane("info").out.splitlines() if line.split()[:1] == ["spmm"])
    assert row.split()[1:] == ["reference", "requested"]


@pytest.mark.skipif(extension.cuda_missing() is None, reason="CUDA kernels run here")
@pytest.mark.parametrize("command", ["info", "train", "evaluate", "recommend"])
def test_an_implementation_that_cannot_run_is_refused(crane: Crane, finished: Path, command: str) -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "info": (),
        "train": ("--resume", finished),
        "evaluate": (finished,),
        "recommend": (finished, "--users", "u1"),
    }
    with use_implementation(spmm="cuda"):
        result = crane(command, *arguments[command])
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"crane {command}: spmm: implementation 'cuda' was requested but ")
    assert result.err.count("\n") == 1


@pytest.mark.skipif(extension.missing() is not None, reason=f"{extension.missing()}")
def test_an_implementation_that_refuses_a_call_is_named(crane: Crane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("crane_kernels.knn_graph.cpp"), "WIDEST", 4)
    with use_implementation("cpp"):
        result = crane("train", "--data", "demo", "--model", "freedom")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("crane train: knn_graph: implementation 'cpp' was requested but ")
    assert result.err.count("\n") == 1
    assert not list(Path().iterdir())


@pytest.mark.parametrize(("name", "value"), [("CRANE_IMPLEMENTATION", "bogus"), ("CRANE_ISA", "zzz")])
def test_wrong_environment_variables_are_one_sentence(name: str, value: str) -> None:
    if name == "CRANE_ISA" and extension.missing() is not None:
        pytest.skip(f"{extension.missing()}")
    command = [sys.executable, "-P", "-m", "crane", "info"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {name: value})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"crane info: {name}: found '{value}', expected one ")
    assert done.stderr.count("\n") == 1


def test_help_is_fast_because_it_imports_no_torch() -> None:
    script = (
        "import sys; from crane.cli import main; code = main(['train', '--help']); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    for option in ("--data", "--model", "--config", "--set", "--output", "--seed", "--resume", "--threads"):
        assert option in done.stdout


def test_no_command_and_wrong_command_are_refused(crane: Crane) -> None:
    for arguments in ((), ("trian",)):
        result = crane(*arguments)
        assert result.code == 2
        assert result.err.count("\n") == 1
