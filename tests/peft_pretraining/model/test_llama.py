"""The pretraining forward pass against transformers' own, and models as folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from peft_pretraining.model.attention import _torch_attention, short_attention
from peft_pretraining.model.export import save_model
from peft_pretraining.model.llama import ModelConfig, PretrainingLlama, build_model
from peft_pretraining.model.padding import token_layout
from tests.peft_pretraining.tiny import padded_rows, tiny_model, write_config

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "grouped": {"num_key_value_heads": 2},
    "wide_heads": {"head_dim": 14, "num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "rope_theta": {"rope_theta": 500.0},
    "rope_scaled": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "rope_dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
}
LENGTHS = [40, 1, 0, 17, 2, 40, 33]


def loss_and_gradients(model: PretrainingLlama, ids: Tensor, lengths: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(ids, lengths)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return loss.detach(), gradients  # type: ignore[return-value]


def assert_same(one: PretrainingLlama, other: PretrainingLlama, ids: Tensor, lengths: Tensor) -> None:
    """Equal within fp32 rounding: loss 1e-6, gradients 1e-5 of their norm."""
    loss, gradients = loss_and_gradients(one, ids, lengths)
    expected, expected_gradients = loss_and_gradients(other, ids, lengths)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        reference = expected_gradients[name]
        assert (gradient - reference).norm() <= 1e-5 * reference.norm() + 1e-7, name


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_plain_forward_of_transformers(tmp_path: Path, shape: str) -> None:
    ours = tiny_model(tmp_path, SHAPES[shape])
    plain = tiny_model(tmp_path, SHAPES[shape], use_hf_model=True)
    assert_same(ours, plain, *padded_rows(LENGTHS, 40))


@pytest.mark.parametrize("shape", ["plain", "grouped"])
def test_compiled_and_checkpointed_equal_the_plain_forward(tmp_path: Path, shape: str) -> None:
    plain = tiny_model(tmp_path, SHAPES[shape], use_hf_model=True)
    for flags in ({"compile_model": True}, {"activation_checkpointing": True}):
        ours = tiny_model(tmp_path, SHAPES[shape], **flags)
        assert_same(ours, plain, *padded_rows(LENGTHS, 40))


def test_the_loss_is_the_labelled_loss_of_transformers(tmp_path: Path) -> None:
    """Against LlamaForCausalLM with mask and labels, whose loss is a mean; loaded from the saved folder."""
    model = tiny_model(tmp_path)
    ids, lengths = padded_rows(LENGTHS, 40)
    save_model(model, tmp_path / "saved")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    mask = torch.arange(40) < lengths[:, None]
    mean = reference(ids, attention_mask=mask.long(), labels=ids.masked_fill(~mask, -100)).loss
    torch.testing.assert_close(model(ids, lengths) / (lengths - 1).clamp_min(0).sum(), mean)


@pytest.mark.parametrize("lengths", [[0, 0], [1, 1], [0, 1], [64, 64], [2]])
def test_rows_without_targets_and_rows_without_padding(tmp_path: Path, lengths: list[int]) -> None:
    ids, real = padded_rows(lengths, 64)
    loss, gradients = loss_and_gradients(tiny_model(tmp_path), ids, real)
    targets = sum(max(length - 1, 0) for length in lengths)
    assert torch.isfinite(loss)
    assert (loss > 0) == (targets > 0)
    assert any(gradient.count_nonzero() for gradient in gradients.values()) == (targets > 0)


def test_what_stands_in_the_padding_does_not_matter(tmp_path: Path) -> None:
    ids, lengths = padded_rows(LENGTHS, 40)
    garbage = torch.where(torch.arange(40) < lengths[:, None], ids, 95)
    model = tiny_model(tmp_path)
    loss, gradients = loss_and_gradients(model, ids, lengths)
    other_loss, other_gradients = loss_and_gradients(model, garbage, lengths)
    assert loss == other_loss
    assert all(torch.equal(gradient, other_gradients[name]) for name, gradient in gradients.items())


def test_the_embedding_of_the_pad_id_learns_where_it_is_a_real_token(tmp_path: Path) -> None:
    ids = torch.zeros(1, 8, dtype=torch.int64)
    _, gradients = loss_and_gradients(tiny_model(tmp_path), ids, torch.tensor([8]))
    assert gradients["model.embed_tokens.weight"][0].count_nonzero() > 0


def test_a_loss_of_rows_is_the_sum_of_the_losses_of_its_rows(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    ids, lengths = padded_rows(LENGTHS, 40)
    with torch.no_grad():
        single = sum(model(ids[i : i + 1], lengths[i : i + 1]) for i in range(len(lengths)))
        torch.testing.assert_close(model(ids, lengths), single)


def test_loss_without_gradients_equals_the_loss_in_training(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    ids, lengths = padded_rows(LENGTHS, 40)
    training = model(ids, lengths)
    with torch.no_grad():
        evaluation = model.eval()(ids, lengths)
    torch.testing.assert_close(evaluation, training.detach(), rtol=1e-6, atol=0)


def test_bf16_loss_is_fp32_and_close(tmp_path: Path) -> None:
    ids, lengths = padded_rows(LENGTHS, 40)
    exact = tiny_model(tmp_path)(ids, lengths)
    loss = tiny_model(tmp_path, dtype="bf16")(ids, lengths)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=0)


def test_gradients_arrive_layer_by_layer(tmp_path: Path) -> None:
    """Updates inside the backward pass free each gradient at once: the last layer's come before the first's."""
    model = tiny_model(tmp_path, compile_model=True)
    order: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))
    model(*padded_rows(LENGTHS, 40)).backward()
    assert sorted(order) == sorted(dict(model.named_parameters()))
    assert order[0] == "lm_head.weight"
    assert order[-1] == "model.embed_tokens.weight"
    assert max(i for i, n in enumerate(order) if ".layers.1." in n) < min(
        i for i, n in enumerate(order) if ".layers.0." in n
    )


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    one, same, other = (tiny_model(tmp_path, seed=seed).state_dict() for seed in (1, 1, 2))
    torch.manual_seed(99)
    half = tiny_model(tmp_path, seed=1, dtype="bfloat16").state_dict()
    for name, weight in one.items():
        assert torch.equal(weight, same[name])
        assert torch.equal(weight.bfloat16(), half[name])
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    assert one["lm_head.weight"].std().item() == pytest.approx(0.02, rel=0.1)


def test_building_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    tiny_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_have_the_names_of_transformers(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, compile_model=True)
    expected = [name for name, _ in LlamaForCausalLM(model.config).named_parameters()]
    assert [name for name, _ in model.named_parameters()] == expected


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", [1, 7, 64])
def test_layout_computes_every_real_token_and_few_others(rows: int, length: int) -> None:
    lengths = torch.randint(0, length + 1, (rows,), generator=torch.Generator().manual_seed(length))
    layout = token_layout(lengths, length)
    real = (torch.arange(length) < lengths[:, None]).flatten().nonzero()[:, 0]
    assert set(real.tolist()) <= set(layout.origin.tolist())
    assert len(layout.origin) <= max(len(real) + 63, 64)
    assert layout.origin.unique().equal(layout.origin)
    assert layout.origin[layout.scored].add(1).equal(layout.targets)
    assert len(layout.targets) == (lengths - 1).clamp_min(0).sum()


def test_attention_by_products_equals_torch() -> None:
    rows, length, scale = 2, 33, 0.3
    shapes = ((rows * length, 4, 8), (rows * length, 2, 8), (rows * length, 2, 8))
    heads = [torch.randn(shape, requires_grad=True) for shape in shapes]
    batch = [tensor.unflatten(0, (rows, length)).transpose(1, 2) for tensor in heads]
    expected = scaled_dot_product_attention(*batch, is_causal=True, scale=scale, enable_gqa=True)
    expected = expected.transpose(1, 2).flatten(0, 1)
    output = short_attention(*heads, torch.arange(rows * length), (rows, length), scale)
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(output)
    gradients = torch.autograd.grad(output, heads, weights)
    for one, other in zip(gradients, torch.autograd.grad(expected, heads, weights), strict=True):
        torch.testing.assert_close(one, other)


def test_documents_of_a_packed_row_do_not_see_one_another(tmp_path: Path) -> None:
    """The loss of a row is that of its documents alone, each with the first token of the next as its last target."""
    end = 7
    model = tiny_model(tmp_path)
    lengths = (9, 1, 14, 8)  # 1: an end of document alone
    ids, _ = padded_rows([32, 32], 32)
    ids[ids == end] = 8
    for row in ids:
        row[torch.tensor(lengths).cumsum(0)[:-1] - 1] = end
    alone = 0.0
    for row in ids:
        for start, length in zip((0, 9, 10, 24), lengths, strict=True):
            part = row[start : start + length + 1][None]
            alone += float(model(part, torch.tensor([part.shape[1]])))
    whole = model(ids, torch.tensor([32, 32]))
    model.document_end = end
    masked = model(ids, torch.tensor([32, 32]))
    masked.backward()
    torch.testing.assert_close(float(masked), alone, rtol=1e-5, atol=0)
    assert abs(float(whole) - alone) > 1e-3


@pytest.mark.parametrize("grouped", [1, 2])
def test_masked_attention_by_products_equals_torch(grouped: int) -> None:
    rows, length, heads = 3, 24, 4
    generator = torch.Generator().manual_seed(1)
    query, *others = (
        torch.randn(rows * length, count, 8, generator=generator)
        for count in (heads, heads // grouped, heads // grouped)
    )
    documents = torch.randint(0, 2, (rows, length), generator=generator).cumsum(1)
    origin = torch.arange(rows * length)
    by_products = short_attention(query, *others, origin, (rows, length), 0.3, documents)
    by_torch = _torch_attention(query, *others, origin, (rows, length), 0.3, documents, dropout=0.0)
    torch.testing.assert_close(by_products, by_torch, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", ["plain", "tied", "wide_heads", "rope_scaled"])
def test_saved_folder_is_an_ordinary_llama(tmp_path: Path, shape: str) -> None:
    model = tiny_model(tmp_path, SHAPES[shape], dtype="bfloat16")
    save_model(model, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(loaded) is LlamaForCausalLM
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.architectures == ["LlamaForCausalLM"]
    weights = dict(loaded.named_parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in model.named_parameters())


def test_meta_device_holds_shapes_only(tmp_path: Path) -> None:
    model = build_model(ModelConfig(str(write_config(tmp_path))), "meta", seed=0)
    assert all(parameter.is_meta for parameter in model.parameters())
