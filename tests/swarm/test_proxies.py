"""FedQSN: columns and masks, a server's proxies, and owners who mix theirs."""

from dataclasses import replace

import numpy as np
import pytest

from veilmesh.core import generator
from veilmesh.crypto.codecs import table
from veilmesh.swarm.sharing.base import Learner, Own, Setting
from veilmesh.swarm.sharing.columns import Columns, columns_of
from veilmesh.swarm.sharing.masked_proxy import MaskedProxy
from veilmesh.swarm.sharing.served_proxy import ServedProxy
from veilmesh.swarm.sharing.whole_model import WholeModel
from veilmesh.tasks.work import Evaluate, Evaluated, Settings, Train, Trained

CLASSES, SHAPE = 4, (1, 8, 8)
MLP = (("0.weight", (10, 20), 0), ("0.bias", (10,), 200), ("1.weight", (4, 10), 210), ("1.bias", (4,), 250))
CONV = (("0.weight", (6, 3, 2, 2), 0), ("1.weight", (2, 6), 72))


def pictures(name: str, n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = generator(3, name)
    return rng.random((n, *SHAPE), np.float32), (np.arange(n) % CLASSES).astype(np.int64)


def setting(**settings: object) -> Setting:
    given = {"batch": 8, "local_steps": 2, "learning_rate": 0.1} | settings
    model = {"name": "mlp", "hidden": [16]}
    return Setting(model, SHAPE, CLASSES, Settings(**given), 0, 2, *pictures("public"))  # type: ignore[arg-type]  # given as fields are


def own(index: int = 0) -> Own:
    return Own(index, *pictures(f"own-{index}"), *pictures("test"), None, private=100 + index)


def update_of(learner: Learner, round_: int, shared: np.ndarray) -> np.ndarray:
    (answer,) = learner.run([Train(round_, shared)])
    assert isinstance(answer, Trained)
    return answer.update


# --- columns --------------------------------------------------------------------------------------------------------


def test_a_column_is_what_a_unit_is_seen_by() -> None:
    columns = Columns.in_layout(MLP)
    assert columns.counts == (20, 10)
    weights = np.zeros(254, np.float32)
    weights[:200].reshape(10, 20)[:, 7] = 1
    weights[210:250].reshape(4, 10)[:, 3] = 1
    assert np.flatnonzero(columns.shown(weights)).tolist() == [7, 23]
    assert (columns.of[200:210] == -1).all()
    assert (columns.of[250:] == -1).all()


def test_of_a_convolution_it_is_an_input_channel() -> None:
    columns = Columns.in_layout(CONV)
    assert columns.counts == (3, 6)
    mask = np.array([True, False, True, *(True,) * 6])
    assert (columns.spread(mask)[:72].reshape(6, 3, 4).all(axis=(0, 2)) == mask[:3]).all()


def test_as_many_columns_of_each_matrix_are_left_out_as_was_said() -> None:
    columns, rng = Columns.in_layout(MLP), generator(0, "masks")
    secret = columns.drawn(0.2, rng)
    kept = columns.drawn(0.25, rng, secret)
    assert [np.count_nonzero(secret[m]) for m in columns.matrices] == [16, 8]
    assert [np.count_nonzero(kept[m]) for m in columns.matrices] == [12, 6]
    assert not (kept & ~secret).any()
    assert columns.drawn(0.99, rng).any()


def test_a_scaled_mask_is_unbiased() -> None:
    columns = Columns.in_layout(MLP)
    mean = np.mean([columns.scale(columns.drawn(0.3, generator(i, "m"))) for i in range(600)], axis=0)
    np.testing.assert_allclose(mean, 1, atol=0.12)


# --- a server's proxies ---------------------------------------------------------------------------------------------


def read(blob: bytes, like: np.ndarray) -> np.ndarray:
    return table.decode(blob, like.size).values


def test_what_a_server_hides_is_hidden_from_every_client_in_every_round() -> None:
    scheme = ServedProxy(hidden=0.25, dropped=0.25)
    served, columns = scheme.served(setting(), 7), columns_of(setting())
    x = generator(0, "x").normal(size=served.begun.size).astype(np.float32)
    masks = [columns.shown(read(served.proxy(x, client, round_), x)) for client in range(4) for round_ in range(12)]
    never = ~np.any(masks, axis=0)
    assert [np.count_nonzero(never[m]) for m in columns.matrices] == [16, 4]
    np.testing.assert_array_equal(columns.spread(~never), ~served.hidden)
    assert len({m.tobytes() for m in masks}) > 40
    assert served.proxy(x, 1, 3) == scheme.served(setting(), 7).proxy(x, 1, 3)
    assert (scheme.served(setting(), 8).hidden != served.hidden).any()


def test_without_masks_and_rounding_a_proxy_is_the_model() -> None:
    served = ServedProxy(hidden=0, dropped=0, bits=0).served(setting(), 7)
    x = generator(0, "x").normal(size=served.begun.size).astype(np.float32)
    np.testing.assert_array_equal(read(served.proxy(x, 0, 0), x), x)
    assert not served.hidden.any()


def test_proxies_are_the_model_on_average() -> None:
    served = ServedProxy(hidden=0, dropped=0.25, bits=0).served(setting(), 7)
    x = generator(0, "x").normal(size=served.begun.size).astype(np.float32)
    mean = np.mean([read(served.proxy(x, c, r), x) for c in range(20) for r in range(20)], axis=0)
    np.testing.assert_allclose(mean, x, atol=0.2 * float(np.abs(x).max()))


def test_a_server_that_was_pretrained_begins_elsewhere_and_says_nothing_of_it() -> None:
    plain, trained = ServedProxy(), ServedProxy(pretraining=5)
    np.testing.assert_array_equal(plain.initial(setting()), trained.initial(setting()))
    np.testing.assert_array_equal(plain.served(setting(), 1).begun, plain.initial(setting()))
    begun = trained.served(setting(), 1).begun
    assert (begun != trained.initial(setting())).any()
    assert (begun != trained.served(setting(), 2).begun).any()  # another order of the same pictures
    np.testing.assert_array_equal(begun, trained.served(setting(), 1).begun)


def test_where_only_shown_columns_are_taught_nothing_is_said_of_the_others() -> None:
    columns = columns_of(setting())
    served = ServedProxy(bits=0).served(setting(), 7)
    proxy = read(served.proxy(served.begun, 0, 0), served.begun)
    gone = ~columns.spread(columns.shown(proxy))
    assert update_of(ServedProxy(taught="all").learner(setting(), own()), 0, proxy)[gone].any()
    update = update_of(ServedProxy(taught="shown").learner(setting(), own()), 0, proxy)
    assert not update[gone].any()
    assert update[~gone].any()


# --- owners who mix their proxies -----------------------------------------------------------------------------------


def rounds(scheme: MaskedProxy, count: int, rate: float = 0.1) -> list[list[np.ndarray]]:
    """What two owners, who average, say in `count` rounds."""
    whole = setting(learning_rate=rate)
    learners = [scheme.learner(whole, own(i)) for i in range(2)]
    shared = scheme.initial(whole)
    said = []
    for round_ in range(count):
        said.append([shared + update_of(learner, round_, shared) for learner in learners])
        shared = np.mean(said[-1], axis=0, dtype=np.float32)
    return said


def test_without_masks_and_rounding_owners_average_their_models() -> None:
    scheme, whole = MaskedProxy(hidden=0, dropped=0, bits=0), setting()
    trainers = [WholeModel().learner(whole, own(i)) for i in range(2)]
    x = WholeModel().initial(whole)
    for round_, said in enumerate(rounds(scheme, 4)):
        models = [x + update_of(trainer, round_, x) for trainer in trainers]
        for mine, model in zip(said, models, strict=True):
            np.testing.assert_allclose(mine[: x.size], model, atol=1e-5)
            assert (mine[x.size :] == 1).all()
        x = np.mean(models, axis=0, dtype=np.float32)


def test_a_secret_column_is_never_said_and_the_mask_is_told() -> None:
    columns = columns_of(setting())
    for mine in zip(*rounds(MaskedProxy(hidden=0.25, dropped=0.25), 12), strict=True):
        proxies, masks = [x[: columns.of.size] for x in mine], [x[columns.of.size :] > 0.5 for x in mine]
        ever = np.any(masks, axis=0)
        assert [np.count_nonzero(~ever[m]) for m in columns.matrices] == [16, 4]
        for proxy, mask in zip(proxies, masks, strict=True):
            assert not proxy[~columns.spread(mask)].any()
        assert len({m.tobytes() for m in masks}) == len(masks)


@pytest.mark.parametrize("follow", ["all", "shown"])
def test_masks_make_nothing_grow(follow: str) -> None:
    """With hardly any training, models are means of what they were: a zero is not taken for a weight."""
    scheme = MaskedProxy(hidden=0.25, dropped=0.25, follow=follow)  # type: ignore[arg-type]  # one of the two
    largest = float(np.abs(WholeModel().initial(setting())).max())
    assert max(np.abs(x[:-80]).max() for x in rounds(scheme, 60, 1e-6)[-1]) <= 1.02 * largest


def test_an_owner_is_scored_by_its_own_model_and_not_by_what_it_says() -> None:
    scheme, whole = MaskedProxy(hidden=0.4, dropped=0.4, bits=2), setting(local_steps=30)
    shared = scheme.initial(whole)
    own_test = replace(own(), test_x=own().x, test_y=own().y)
    learner, proxies = scheme.learner(whole, own_test), WholeModel().learner(whole, own_test)
    for round_ in range(20):
        shared = shared + update_of(learner, round_, shared)
    (mine,), (told,) = learner.run([Evaluate(shared)]), proxies.run([Evaluate(shared[:-80])])
    assert isinstance(mine, Evaluated)
    assert isinstance(told, Evaluated)
    assert mine.accuracy > told.accuracy + 0.2


def test_who_has_said_nothing_reads_a_mix_as_the_mean_of_those_who_show() -> None:
    scheme, whole = MaskedProxy(hidden=0.25, dropped=0.25, bits=0), setting()
    mix = np.mean(rounds(scheme, 3)[-1], axis=0, dtype=np.float32)
    fresh = scheme.learner(whole, own(5))
    halved = np.append(mix[:-80] / 2, mix[-80:] / 2).astype(np.float32)
    # biases are in no column: of them all is shown, so half of them is another model
    columns = columns_of(whole)
    halved[:-80][columns.of < 0] *= 2
    (first,), (second,) = fresh.run([Evaluate(mix)]), fresh.run([Evaluate(halved)])
    assert first == second
