"""HyperFL: what leaves a peer is the hypernetwork's update, and its private parts are its own and stay."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from veilmesh.core import BadInput, generator
from veilmesh.sim.cast import Cast
from veilmesh.sim.scenario import Scenario
from veilmesh.swarm.sharing.base import SHARINGS, Own, Setting
from veilmesh.swarm.sharing.hyperfl import HyperFL
from veilmesh.swarm.sharing.hyperfl_lpm import HyperFLLPM
from veilmesh.tasks.generated import GeneratedTrainer
from veilmesh.tasks.models.adapted import adapted
from veilmesh.tasks.models.hypernetwork import (
    Hypernetwork,
    HyperOptions,
    hypernetwork,
    hypernetwork_of,
    initial_phi,
    own_parts,
)
from veilmesh.tasks.work import Evaluate, Evaluated, Settings, Train, Trained, batch_indices

SHAPE, CLASSES = (1, 8, 8), 4
CONVNET = {"name": "convnet", "width": 4, "depth": 2}
FORMS = [
    HyperOptions(8, 16), HyperOptions(8, 16, head_bias=False), HyperOptions(8, 16, rank=2),
    HyperOptions(8, 16, chunk=50), HyperOptions(8, 16, chunk=50, head_bias=False),
]  # fmt: skip


def pictures(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    y = np.arange(n) % CLASSES
    x = generator(3, name).random((n, *SHAPE), np.float32) * 0.3
    for i, label in enumerate(y):
        x[i, 0, 2 * label : 2 * label + 2] += 0.6
    return x.clip(0, 1), y.astype(np.int64)


def setting(local_steps: int = 2, model: dict[str, Any] | None = None, **changes: Any) -> Setting:
    steps = Settings(8, local_steps, 0.1, **changes)
    return Setting(model or CONVNET, SHAPE, CLASSES, steps, 0, 2, *pictures("public", 40))


def learner(sharing: HyperFL, index: int = 0, private: int = 100, local_steps: int = 2) -> GeneratedTrainer:
    own = Own(index, *pictures(f"own-{index}", 24), *pictures("test", 40), None, private)
    made = sharing.learner(setting(local_steps), own)
    assert isinstance(made, GeneratedTrainer)
    return made


def trained(of: GeneratedTrainer, round_: int, phi: np.ndarray) -> Trained:
    (answer,) = of.run([Train(round_, phi)])
    assert isinstance(answer, Trained)
    return answer


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize(
    "model", [CONVNET, {"name": "mlp", "hidden": [16]}, {"name": "resnet", "depth": 8, "width": 4}]
)
def test_what_is_generated_begins_as_large_as_the_network_would(options: HyperOptions, model: dict[str, Any]) -> None:
    net = hypernetwork(options, model, SHAPE, CLASSES)
    phi = torch.from_numpy(initial_phi(net, 7))
    assert phi.shape == (net.size,)
    draws = [net.generate(phi, own_parts(net, private)[0]) for private in range(40)]
    for name in net.names:
        centre, spread = net.levels[name]
        values = torch.stack([theta[name] for theta in draws])
        assert values.shape[1:] == net.shapes[name]
        if spread and values[0].numel() >= 100:
            assert 0.4 * spread < float(values.std()) < 2.5 * spread
        assert abs(float(values.mean()) - centre) < max(spread, 0.2)
    _, psi = own_parts(net, 0)
    logits = net.forward(draws[0], psi, torch.from_numpy(pictures("some", 3)[0]))
    assert logits.shape == (3, CLASSES)
    assert logits.isfinite().all()


@pytest.mark.parametrize("options", FORMS)
def test_the_shared_vector_is_the_parts_that_the_layout_names(options: HyperOptions) -> None:
    net = hypernetwork(options, CONVNET, SHAPE, CLASSES)
    phi = torch.arange(net.size, dtype=torch.float32)
    parts = net.parts(phi)
    for name, shape, offset in net.layout:
        assert parts[name].shape == shape
        assert float(parts[name].reshape(-1)[0]) == offset
    assert sum(part.numel() for part in parts.values()) == net.size
    assert any(name.endswith("bias") and name != "mlp.bias" for name in parts) == options.head_bias
    v, _ = own_parts(net, 5)
    drawn = torch.from_numpy(initial_phi(net, 0))
    for name, part in net.heads(drawn, net.hidden(drawn, v)).items():
        torch.testing.assert_close(part, net.generate(drawn, v)[name], rtol=0, atol=0)


def test_generated_and_private_are_the_whole_network_and_full_heads_are_wide() -> None:
    net = hypernetwork(HyperOptions(), {"name": "convnet", "width": 16}, SHAPE, CLASSES)
    assert net.generated == (9 + 1) * 16 + 2 * (9 * 16 + 1) * 16
    assert net.private == (16 + 1) * CLASSES
    assert net.size == 128 * 64 + 128 + (128 + 1) * net.generated
    narrow = hypernetwork(HyperOptions(16, 32, rank=1), {"name": "convnet", "width": 16}, SHAPE, CLASSES)
    assert narrow.size <= 3 * (net.generated + net.private)


def test_the_papers_network_has_the_papers_sizes() -> None:
    net = hypernetwork(HyperOptions(), {"name": "fc-convnet"}, (3, 32, 32), 10)
    assert (net.generated, net.private) == (106_400, 1_290)
    assert net.size == 64 * 128 + 128 + 129 * 106_400  # 55 MB a message


def test_a_step_is_plain_backpropagation_through_the_hypernetwork() -> None:
    sharing = HyperFL(8, 16, classifier_steps=1, clip=1e9)
    peer, whole = learner(sharing, local_steps=1), setting(1)
    net, phi = sharing.hypernetwork(whole), sharing.initial(whole)
    v = peer.embedding
    update = trained(peer, 0, phi).update
    x, y = pictures("own-0", 24)
    drawn = batch_indices(0, 0, 0, 0, 24, 8)
    leaf, v = torch.from_numpy(phi).requires_grad_(), v.requires_grad_()
    logits = net.forward(net.generate(leaf, v), peer.classifier, torch.from_numpy(x[drawn]))
    functional.cross_entropy(logits, torch.from_numpy(y[drawn])).backward()
    assert leaf.grad is not None
    assert v.grad is not None
    wanted = -0.02 * (leaf.grad + 5e-4 * leaf.detach())
    torch.testing.assert_close(torch.from_numpy(update), wanted, rtol=1e-4, atol=1e-7)
    v_now = v.detach() - 0.02 * (v.grad + 5e-4 * v.detach())
    torch.testing.assert_close(peer.embedding, v_now, rtol=1e-4, atol=1e-7)


def test_after_one_step_a_full_head_gives_away_the_extractors_gradient_and_the_hidden_layer() -> None:
    """What the adaptive attacker reads; seen from the peer's side, so that a change of training cannot hide it."""
    sharing = HyperFL(8, 16, decay=0.0, clip=1e9)
    peer, whole = learner(sharing, local_steps=1), setting(1)
    net, phi = sharing.hypernetwork(whole), torch.from_numpy(sharing.initial(whole))
    z = net.hidden(phi, peer.embedding)
    parts = net.parts(torch.from_numpy(trained(peer, 0, phi.numpy()).update))
    name = f"heads.{net.names[0]}"
    row = int(parts[f"{name}.bias"].abs().argmax())
    torch.testing.assert_close(parts[f"{name}.weight"][row] / parts[f"{name}.bias"][row], z, rtol=1e-4, atol=1e-6)


def test_private_parts_are_drawn_from_the_peers_secret_unless_asked_otherwise() -> None:
    def parts(private: int, common: Any) -> tuple[torch.Tensor, torch.Tensor]:
        peer = learner(HyperFL(8, 16, common_start=common), private=private)
        return peer.embedding, peer.classifier["6.weight"]

    for common, same in ((False, (False, False)), (True, (True, True)), ("embedding", (True, False))):
        one, other = parts(1, common), parts(2, common)
        assert tuple(torch.equal(a, b) for a, b in zip(one, other, strict=True)) == same
    v, psi = (torch.equal(a, b) for a, b in zip(parts(1, "classifier"), parts(2, "classifier"), strict=True))
    assert (v, psi) == (False, True)


def test_private_parts_learn_and_stay_from_round_to_round() -> None:
    sharing = HyperFL(8, 16)
    peer, phi = learner(sharing), sharing.initial(setting())
    begin = peer.embedding, peer.classifier["6.weight"]
    first = trained(peer, 0, phi)
    after = peer.embedding, peer.classifier["6.weight"]
    assert not any(torch.equal(a, b) for a, b in zip(begin, after, strict=True))
    again = learner(sharing)
    trained(again, 0, phi)
    once_more, fresh = trained(peer, 1, phi + first.update), trained(learner(sharing), 1, phi + first.update)
    assert not np.array_equal(once_more.update, fresh.update)  # who remembers is elsewhere
    np.testing.assert_array_equal(once_more.update, trained(again, 1, phi + first.update).update)


def test_a_small_clip_bounds_every_step() -> None:
    sharing = HyperFL(8, 16, clip=1e-3, decay=0.0, momentum=0.0)
    update = trained(learner(sharing, local_steps=3), 0, sharing.initial(setting())).update
    assert 0 < np.linalg.norm(update) <= 3 * 0.02 * 1e-3 * 1.01


@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"rank": 2, "head_bias": False}, {"chunk": 50}])
def test_two_peers_learn_in_every_form(options: dict[str, Any]) -> None:
    sharing = SHARINGS.build("hyperfl", {"embedding": 8, "hidden": 16, "common_start": True} | options)
    assert isinstance(sharing, HyperFL)
    peers, phi = [learner(sharing, i, 100 + i, 5) for i in range(2)], sharing.initial(setting())
    losses = []
    for round_ in range(12):
        answers = [trained(peer, round_, phi) for peer in peers]
        phi = (phi + np.mean([a.update for a in answers], axis=0)).astype(np.float32)
        losses.append(np.mean([a.loss for a in answers]))
    assert losses[-1] < 0.5 * losses[0]
    scores = [peer.run([Evaluate(phi)])[0] for peer in peers]
    assert min(s.accuracy for s in scores if isinstance(s, Evaluated)) > 0.7


def test_adapters_are_generated_and_the_backbone_is_the_same_for_all_and_does_not_move() -> None:
    sharing = HyperFLLPM(8, 16, backbone_steps=60)
    one, other = (sharing.hypernetwork(setting()) for _ in range(2))
    assert all(name.startswith("adapters.") for name in one.names)
    assert one.generated < sum(p.numel() for p in one.network.parameters())
    before = {name: p.clone() for name, p in one.network.named_parameters()}
    for name, p in other.network.named_parameters():
        assert torch.equal(p, before[name])
    untrained = HyperFLLPM(8, 16, backbone_steps=0).hypernetwork(setting())
    assert not torch.equal(dict(untrained.network.named_parameters())["body.1.weight"], before["body.1.weight"])
    own = Own(0, *pictures("own-0", 24), *pictures("test", 40), None, 1)
    peer = sharing.learner(setting(), own)
    peer.run([Train(0, sharing.initial(setting()))])
    assert isinstance(peer, GeneratedTrainer)
    for name, p in peer.network.named_parameters():
        assert torch.equal(p, before[name])


def test_adapters_with_batch_normalisation_leave_its_statistics_alone() -> None:
    network = adapted({"name": "resnet", "depth": 8, "width": 4}, SHAPE, CLASSES, 2).train()
    x = torch.from_numpy(pictures("some", 4)[0])
    torch.testing.assert_close(network(x)[:2], network(x[:2]))


@pytest.mark.parametrize(
    ("options", "model", "changes", "says"),
    [
        ({}, {"name": "mlp", "hidden": []}, {}, "one layer only"),
        ({"rank": 1, "chunk": 8}, CONVNET, {}, "not both"),
        ({"hidden": 16384}, {"name": "mlp", "hidden": [1024]}, {}, "rank or chunk"),
        ({}, CONVNET, {"optimizer": "adam"}, "SGD"),
    ],
)
def test_what_does_not_fit_is_refused(
    options: dict[str, Any], model: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        SHARINGS.build("hyperfl", options).initial(setting(2, model, **changes))


def test_no_adapters_where_there_are_no_stages() -> None:
    with pytest.raises(BadInput, match="no stages"):
        HyperFLLPM().initial(setting(2, {"name": "mlp", "hidden": []}))


def test_rates_that_are_too_high_are_said() -> None:
    sharing = HyperFL(8, 16, learning_rate=1e12, clip=1e12)
    with pytest.raises(BadInput, match="diverged"):
        trained(learner(sharing, local_steps=8), 0, sharing.initial(setting()))


def test_a_scenario_names_it_and_every_member_gets_its_own() -> None:
    scenario = Scenario.model_validate(
        {
            "world": "virtual", "task": "digits", "peers": 3, "strategy": "fedavg", "partition": "dominant",
            "evaluate_on": "own", "sharing": {"name": "hyperfl", "embedding": 8, "hidden": 8, "rank": 1},
        }
    )  # fmt: skip
    cast = Cast.prepare(scenario)
    learners = [cast.learner(index) for index in range(4)]  # the hub's too
    embeddings = [x.embedding for x in learners if isinstance(x, GeneratedTrainer)]
    assert len({tuple(v.tolist()) for v in embeddings}) == 4
    assert isinstance(learners[3].run([Evaluate(cast.initial)])[0], Evaluated)


def test_the_description_follows_from_what_is_public() -> None:
    def of(network: dict[str, Any]) -> Hypernetwork:
        return hypernetwork(HyperOptions(8, 16), network, SHAPE, CLASSES)

    assert of(CONVNET).layout == of(dict(CONVNET)).layout
    again = hypernetwork_of(HyperOptions(8, 16), of(CONVNET).network, of(CONVNET).names, of(CONVNET).own)
    assert again.layout == of(CONVNET).layout
    np.testing.assert_array_equal(initial_phi(of(CONVNET), 3), initial_phi(again, 3))
