"""``accelerate`` on models as users write them: same numbers, nothing else touched, and all of it undone."""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import models
import numpy as np
import pytest
import torch
from models import CrossModalAttention, LightGCN, authors_model, batch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import crane_kernels
from crane_kernels import accelerate, accelerated
from crane_kernels.integrate import products


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The sparse matrices whose products the kernels serve during the test."""
    seen: list[Tensor] = []
    fast_operands = products.fast_operands

    def record(A: Tensor, x: Tensor) -> tuple[crane_kernels.Graph, Tensor] | None:
        operands = fast_operands(A, x)
        if operands is not None:
            seen.append(A)
        return operands

    monkeypatch.setattr(products, "fast_operands", record)
    return seen


def gradients(model: nn.Module, step: int = 0) -> dict[str, Tensor]:
    model.zero_grad()
    model.calculate_loss(batch(step)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("swapped", [False, True], ids=["modalities", "items"])
def test_report_names_what_was_replaced(swapped: bool) -> None:
    report = accelerate(authors_model(swapped=swapped))
    assert [r.path for r in report.replaced] == ["cross_modal_attention", ""]
    axis = "items" if swapped else "modalities"
    assert f"2 projections, attention over {axis}, mean over modalities" in report.replaced[0].part
    assert "forward(), norm_adj, mm_adj" in report.replaced[1].part
    assert not report.left
    assert str(report).startswith("CRANE: 2 replaced, 0 left\n  replaced  cross_modal_attention: CrossModalAttention")


@pytest.mark.parametrize("swapped", [False, True], ids=["modalities", "items"])
def test_outputs_and_gradients_do_not_change(swapped: bool, served: list[Tensor]) -> None:
    plain, ours = (authors_model(swapped=swapped) for _ in range(2))
    accelerate(ours)
    users = torch.arange(9)
    torch.testing.assert_close(ours.full_sort_predict(users), plain.full_sort_predict(users), rtol=1e-5, atol=1e-6)
    expected, found = gradients(plain), gradients(ours)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7, msg=name)
    assert {id(A) for A in served} == {id(ours.norm_adj), id(ours.mm_adj)}


def loss_curves(build: Callable[[], nn.Module], batches: list[Tensor]) -> list[list[float]]:
    """Losses of Adam's steps, without and with ``accelerate``; the optimiser is made before."""
    curves = []
    for replace in (False, True):
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        if replace:
            accelerate(model)
        curve = []
        for triples in batches:
            optimizer.zero_grad()
            loss = model.calculate_loss(triples)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    return curves


@pytest.mark.parametrize("swapped", [False, True], ids=["modalities", "items"])
def test_fifty_steps_with_an_optimiser_made_before(swapped: bool) -> None:
    before, after = loss_curves(lambda: authors_model(swapped=swapped), [batch(step % 5) for step in range(50)])
    assert after[-1] < after[0]
    assert after == pytest.approx(before, rel=1e-4)


def test_fifty_steps_on_amazon_baby() -> None:
    beside = Path(__file__).parents[4] / "shared" / "data" / "amazon-baby"
    folder = Path(os.environ.get("CRANE_AMAZON_BABY", beside))
    if not folder.is_dir():
        pytest.skip("the amazon-baby data set is not on this machine (CRANE_AMAZON_BABY)")
    users, items, label = np.loadtxt(folder / "baby.inter", np.int64, skiprows=1, usecols=(0, 1, 4), unpack=True)
    pairs = np.stack([users, items])[:, label == 0]
    visual, textual = (torch.from_numpy(np.load(folder / f"{name}_feat.npy")) for name in ("image", "text"))
    n_users, n_items = int(users.max()) + 1, len(visual)

    def build() -> nn.Module:
        torch.manual_seed(0)
        return models.CRANE(pairs, visual.clone(), textual.clone(), swapped=False, dim=32, n_users=n_users)

    generator = torch.Generator().manual_seed(1)
    batches = [
        torch.stack([*torch.from_numpy(pairs)[:, chosen], torch.randint(n_items, chosen.shape, generator=generator)])
        for chosen in torch.randint(pairs.shape[1], (50, 2048), generator=generator)
    ]
    before, after = loss_curves(build, batches)
    assert after[-1] < after[0]
    assert after == pytest.approx(before, rel=1e-4)


def test_state_dict_and_random_numbers_do_not_change() -> None:
    model = authors_model(swapped=False)
    before, random = model.state_dict(), torch.get_rng_state()
    parameters = list(model.parameters())
    accelerate(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert list(model.state_dict()) == list(before)
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    authors_model(swapped=False, seed=1).load_state_dict(model.state_dict())


def test_nothing_outside_the_model_changes(served: list[Tensor]) -> None:
    ours, other = authors_model(swapped=False), authors_model(swapped=False)
    functions = torch.sparse.mm, torch.mm, torch.Tensor.matmul, models.torch.sparse.mm
    accelerate(ours)
    assert functions == (torch.sparse.mm, torch.mm, torch.Tensor.matmul, models.torch.sparse.mm)
    assert type(other) is models.CRANE
    torch.sparse.mm(ours.norm_adj, torch.ones(ours.norm_adj.shape[1], 2))
    other.calculate_loss(batch(0))
    assert not served


def test_undo_and_scope() -> None:
    model = authors_model(swapped=True)
    classes = [type(module) for module in model.modules()]
    attributes = set(vars(model))
    with pytest.raises(IndexError), accelerated(model) as report:
        model.calculate_loss(batch(0) + 1000)
    assert len(report.replaced) == 2
    assert [type(module) for module in model.modules()] == classes
    assert set(vars(model)) == attributes
    accelerate(model).undo()
    assert [type(module) for module in model.modules()] == classes


def test_scope_within_scope_undoes_its_own_part() -> None:
    model = authors_model(swapped=False)
    outer = accelerate(model)
    with accelerated(model) as inner:
        assert not inner.replaced
        assert {entry.why for entry in inner.left} == {"it is accelerated already"}
    assert type(model) is not models.CRANE
    outer.undo()
    assert type(model) is models.CRANE


def test_an_exception_in_a_method_ends_its_scope(served: list[Tensor]) -> None:
    model = authors_model(swapped=False)
    accelerate(model)
    with pytest.raises(IndexError):
        model.calculate_loss(batch(0) + 1000)
    served.clear()
    torch.sparse.mm(model.norm_adj, torch.ones(model.norm_adj.shape[1], 2))
    assert not served
    model.calculate_loss(batch(0))
    assert served


def test_copies_stay_accelerated_and_pickles_are_plain(served: list[Tensor]) -> None:
    model = authors_model(swapped=False)
    expected = model.calculate_loss(batch(0))
    accelerate(model)
    copied = copy.deepcopy(model)
    assert copied.user_embedding.weight is not model.user_embedding.weight
    torch.testing.assert_close(copied.calculate_loss(batch(0)), expected)
    assert served[0] is copied.norm_adj
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for loaded in (torch.load(file, weights_only=False), *(pickle.loads(pickle.dumps(model, p)) for p in (2, 5))):
        assert type(loaded) is models.CRANE
        assert type(loaded.cross_modal_attention) is CrossModalAttention
        torch.testing.assert_close(loaded.calculate_loss(batch(0)), expected)
    assert type(model) is not models.CRANE


def test_copies_in_two_threads_leave_the_module_accelerated() -> None:
    model = authors_model(swapped=False)
    accelerate(model)
    accelerated_class = type(model)
    copying = threading.Thread(target=model.__deepcopy__, args=({},))
    # The other thread starts while this one copies, and ends last.
    waits = threading.Event()

    class Starts:
        def __deepcopy__(self, memo: dict[int, object]) -> None:
            if threading.current_thread() is copying:
                waits.wait(10)
            else:
                copying.start()
                copying.join(0.2)

    model.starts = Starts()
    copy.deepcopy(model)
    waits.set()
    copying.join()
    assert type(model) is accelerated_class


def test_the_report_kept_in_the_model(served: list[Tensor]) -> None:
    model = authors_model(swapped=False)
    model.report = accelerate(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.report == model.report
        other.report.undo()
    model.calculate_loss(batch(0))
    assert served
    model.report.undo()
    assert type(model) is models.CRANE


registered: dict[str, type] = {}


class Registered(LightGCN):
    """As registries of models are written: every class that derives from this enters itself, by a name it must give."""

    def __init_subclass__(cls, *, name: str, **settings: object) -> None:
        super().__init_subclass__(**settings)
        registered[name] = cls


class Entered(Registered, name="entered"):
    pass


def test_registries_of_classes_see_nothing(served: list[Tensor]) -> None:
    model = Entered(models.pairs())
    report = accelerate(model)
    assert registered == {"entered": Entered}
    model.calculate_loss(batch(0))
    assert served
    report.undo()
    assert type(model) is Entered


class Abstract(ABC):
    @abstractmethod
    def forward(self, adjacency: Tensor) -> tuple[Tensor, Tensor]: ...


class Concrete(Abstract, LightGCN):
    def forward(self, adjacency: Tensor) -> tuple[Tensor, Tensor]:
        return LightGCN.forward(self, adjacency)


def test_bases_before_torchs(served: list[Tensor]) -> None:
    model = Concrete(models.pairs())
    report = accelerate(model)
    model.calculate_loss(batch(0))
    assert served
    assert not isinstance(LightGCN(models.pairs()), type(model))
    report.undo()
    assert type(model) is Concrete


class Once(type):
    """Of classes whose names must differ."""

    names: ClassVar[set[str]] = set()

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, object]) -> None:
        if name in Once.names:
            raise TypeError(f"there is a class {name}")
        Once.names.add(name)
        super().__init__(name, bases, namespace)


class Named(models.CRANE, metaclass=Once):
    pass


def test_a_failure_changes_nothing() -> None:
    model = Named(models.pairs(), torch.randn(30, 24), torch.randn(30, 12), swapped=False)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(TypeError, match="there is a class Named"):
        accelerate(model)
    assert [type(module) for module in model.modules()] == classes


def test_other_threads_are_in_scope_only_within_the_methods(served: list[Tensor]) -> None:
    model = authors_model(swapped=False)
    accelerate(model)
    thread = threading.Thread(target=model.calculate_loss, args=(batch(0),))
    thread.start()
    thread.join()
    assert served


def test_wrapped_by_data_parallel(served: list[Tensor]) -> None:
    model = LightGCN(models.pairs())
    wrapped = nn.DataParallel(model)
    accelerate(wrapped)
    assert type(wrapped) is nn.DataParallel
    torch.testing.assert_close(wrapped(model.norm_adj), LightGCN.forward(model, model.norm_adj))
    assert served
    replica = model._replicate_for_data_parallel()
    assert type(replica) is type(model)


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def with_own_parameter() -> nn.Module:
    model = authors_model(swapped=False)
    model.weight = nn.Parameter(torch.ones(3))
    return model


def test_parametrized_afterwards(served: list[Tensor]) -> None:
    model = with_own_parameter()
    built = type(model)
    report = accelerate(model)
    parametrize.register_parametrization(model, "weight", Half())
    assert accelerate(model).replaced == ()
    for accelerated_model in (model, copy.deepcopy(model)):
        served.clear()
        accelerated_model.calculate_loss(batch(0))
        assert served
        assert accelerated_model.weight.tolist() == [0.5] * 3
    report.undo()
    served.clear()
    model.calculate_loss(batch(0))
    assert not served
    parametrize.remove_parametrizations(model, "weight")
    assert type(model) is built


def test_parametrized_before_is_left_and_said(served: list[Tensor]) -> None:
    model = with_own_parameter()
    parametrize.register_parametrization(model, "weight", Half())
    assert "sparse products: it is parametrized" in str(accelerate(model))
    model.calculate_loss(batch(0))
    assert not served


@pytest.mark.parametrize("swapped", [False, True], ids=["modalities", "items"])
def test_compiled_afterwards(swapped: bool) -> None:
    model = authors_model(swapped=swapped)
    expected = gradients(model)
    accelerate(model)
    loss = torch.compile(model.calculate_loss, backend="aot_eager")(batch(0))
    model.zero_grad()
    loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-7, msg=name)


def test_compiled_before() -> None:
    model = LightGCN(models.pairs())
    compiled = torch.compile(model, backend="aot_eager")
    expected = compiled(model.norm_adj)
    accelerate(compiled)
    torch.testing.assert_close(compiled(model.norm_adj), expected)


class Helper(nn.Module):
    """Products written in every way, some in a helper, some of them none that the kernels take."""

    def __init__(self) -> None:
        super().__init__()
        indices = torch.tensor([[0, 1, 2, 2], [1, 0, 2, 2]])
        self.adjacency = torch.sparse_coo_tensor(indices, torch.ones(4), (3, 3), check_invariants=False)
        self.weight = nn.Parameter(torch.ones(3, 2))

    def products(self) -> list[Tensor]:
        A, x = self.adjacency, self.weight
        functions = torch.sparse.mm, torch.mm, torch.spmm, torch.matmul, Tensor.mm, Tensor.matmul
        return [A @ x, A.mm(x), A.matmul(x), *(function(A, x) for function in functions)]

    def others(self) -> list[Tensor]:
        A, x = self.adjacency, self.weight
        return [A @ x[:, 0], x.T @ x, torch.mm(x, x.T), torch.sparse.mm(A.coalesce() * x[:, :1].detach().T, x)]


def test_every_way_to_write_a_product(served: list[Tensor]) -> None:
    model = Helper()
    expected = model.products() + model.others()
    accelerate(model)
    found = model.products()
    assert len(served) == len(found)
    for ours, theirs in zip(found + model.others(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


class Layer(nn.Module):
    def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
        return multiply(adjacency, x)


def multiply(adjacency: Tensor, x: Tensor) -> Tensor:
    return torch.sparse.mm(adjacency, x)


def test_layers_that_take_the_matrix_as_an_argument(served: list[Tensor]) -> None:
    model = nn.Sequential(Layer())
    assert "Layer (forward())" in accelerate(model).replaced[0].part
    A = torch.eye(3).to_sparse()
    torch.testing.assert_close(model[0](A, torch.ones(3, 2)), torch.ones(3, 2))
    assert served


def timed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def wrapper(*args: object, **kwargs: object) -> Tensor:
        return function(*args, **kwargs)

    return wrapper


class Decorated(nn.Module):
    @timed
    def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
        return torch.sparse.mm(adjacency, x)


class Folds(nn.Module):
    """Matrices in a list and in a dictionary, products by the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.folds, self.views = [torch.eye(3).to_sparse()], {"image": torch.eye(3).to_sparse()}

    def forward(self, x: Tensor) -> Tensor:
        return self.folds[0] @ x + self.views["image"] @ x


nameless: dict[str, Any] = {}
exec("def double(x):\n    return 2 * x", nameless)
double = nameless["double"]


class CallsNameless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return double(x)


def test_where_products_are_found(served: list[Tensor]) -> None:
    x = torch.ones(3, 2)
    decorated, folds = Decorated(), Folds()
    assert "(forward())" in accelerate(decorated).replaced[0].part
    assert "(folds, views)" in accelerate(folds).replaced[0].part
    torch.testing.assert_close(decorated(torch.eye(3).to_sparse(), x), x)
    torch.testing.assert_close(folds(x), 2 * x)
    assert len(served) == 3
    assert double.__module__ is None
    assert not accelerate(CallsNameless()).replaced


def test_masked_adjacency_made_anew_each_epoch(served: list[Tensor]) -> None:
    model, plain = LightGCN(models.pairs()), LightGCN(models.pairs())
    plain.load_state_dict(model.state_dict())
    accelerate(model)
    for seed in (1, 2):
        for m in (model, plain):
            m.norm_adj = m.get_norm_adj_mat(models.pairs(seed))
        torch.testing.assert_close(model.calculate_loss(batch(0)), plain.calculate_loss(batch(0)))
    assert len({id(A) for A in served}) == 2


def test_a_method_of_the_instance_is_left() -> None:
    model = LightGCN(models.pairs())
    model.calculate_loss = lambda interaction: torch.zeros(())
    report = accelerate(model)
    assert [(e.part, e.why) for e in report.left] == [
        ("sparse products in calculate_loss()", "the instance has a method of its own")
    ]
    assert model.calculate_loss(batch(0)) == 0


def test_a_model_with_nothing_to_replace() -> None:
    report = accelerate(nn.Linear(2, 2))
    assert not report.replaced
    assert report.left[0].why == "no method names torch.sparse.mm and no attribute is sparse"


def test_no_module() -> None:
    with pytest.raises(TypeError, match="model: found function"):
        accelerate(multiply)


@pytest.mark.parametrize("change", [lambda m: m.half(), lambda m: m.double()], ids=["half", "double"])
def test_cast_afterwards(change: Callable[[nn.Module], nn.Module]) -> None:
    plain, ours = authors_model(swapped=False), authors_model(swapped=False)
    accelerate(ours)
    features = [torch.randn(9, 16) for _ in range(2)]
    for model in (plain, ours):
        change(model.cross_modal_attention)
    dtype = next(ours.cross_modal_attention.parameters()).dtype
    results = [model.cross_modal_attention(*(x.to(dtype) for x in features)) for model in (plain, ours)]
    torch.testing.assert_close(*results, rtol=1e-2 if dtype == torch.half else 1e-7, atol=1e-3)
