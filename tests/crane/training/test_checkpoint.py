import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from crane.files import write_text
from crane.training.checkpoint import Checkpoints, TrainingState


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    model, optimizer = trained(3)
    state = TrainingState(data="d", epoch=3, best_epoch=3, best_value=1 / 3, evaluations_since_best=2, test={"x": 0.1})
    checkpoints.save(state, model, optimizer)
    assert checkpoints.load_state() == state
    other, other_optimizer = trained(0)
    checkpoints.load_weights(3, other)
    checkpoints.load_optimizer(3, other, other_optimizer)
    for m, o in ((model, optimizer), (other, other_optimizer)):
        o.zero_grad()
        m(torch.ones(4, 3)).square().sum().backward()
        o.step()
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_only_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    model, optimizer = trained(1)
    for epoch, best in ((1, 1), (2, 2), (3, 2), (4, 2)):
        checkpoints.save(TrainingState(data="d", epoch=epoch, best_epoch=best), model, optimizer)
    names = ["optimizer-000004.safetensors", "state.json", "weights-000002.safetensors", "weights-000004.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_no_checkpoint_is_no_state(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").load_state() is None


def state(**changed: object) -> str:
    return json.dumps(dataclasses.asdict(TrainingState(data="d", epoch=3)) | changed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting property name"),
        ("{}", "it does not hold the entries best_epoch, "),
        ('{"epoch": 1}', "it does not hold the entries"),
        ('{"data": "d", "color": 1}', "it does not hold the entries"),
        ("[]", "it does not hold the entries"),
        ("3", "it does not hold the entries"),
        (state(epoch="4"), "epoch is '4'"),
        (state(epoch=4.0), r"epoch is 4\.0"),
        (state(best_value="x"), "best_value is 'x'"),
        (state(test=[1]), r"test is \[1\]"),
        (state(test={"recall@20": "a"}), "test is {'recall@20': 'a'}"),
    ],
)
def test_a_damaged_state_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ValueError, match=rf"state\.json is damaged and the run cannot be read: {message}"):
        Checkpoints(tmp_path).load_state()


def test_missing_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    model, _ = trained(0)
    with pytest.raises(ValueError, match=r"weights-000007\.safetensors is missing"):
        Checkpoints(tmp_path).load_weights(7, model)
    (tmp_path / "weights-000007.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"the checkpoint .*weights-000007\.safetensors is damaged: "):
        Checkpoints(tmp_path).load_weights(7, model)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    Checkpoints(tmp_path).save(TrainingState(data="d", epoch=1, best_epoch=1), model, optimizer)
    with pytest.raises(ValueError, match="does not fit the model"):
        Checkpoints(tmp_path).load_weights(1, nn.Linear(5, 2))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "new \ud800")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("the disk is full")

    monkeypatch.setattr("crane.tensors.save_file", full)
    with pytest.raises(OSError, match=r"weights-000001\.safetensors cannot be written: the disk is full"):
        Checkpoints(tmp_path).save(TrainingState(data="d", epoch=1), *trained(1))
    assert list(tmp_path.iterdir()) == []
