"""conv3x3, Winograd's convolution, against torch's in float64 and the definition of the method."""

import pytest
import torch
from conftest import assert_compiles_and_exports, assert_same_for_any_number_of_threads, seeded
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from fastrcnn import ops
from fastrcnn.ops import reference

NAN, INF = float("nan"), float("inf")

# Bounds of the error for up to 256 channels, relative to the standard deviation of the outputs: what the docstring of
# fastrcnn.ops.conv3x3 says, with room for other random numbers. The usual points 0, 1, -1, 2, -2 would exceed both.
LARGEST_ERROR, MEAN_ERROR = 3e-5, 1.8e-6


def random_case(images: int, channels: int, outputs: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias of normal numbers; the outputs have variance 1 inside the image, before the bias."""
    generator = seeded(channels * 1000 + outputs)
    x = torch.randn(images, channels, height, width, generator=generator)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    return x, weight, torch.randn(outputs, generator=generator)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    return ops.conv3x3(x, weight, bias, relu)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)


# --- equal to the definition ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 3, 16, 17, 64])
@pytest.mark.parametrize("channels", [1, 3, 16, 17, 64])
def test_equals_conv2d(channels, outputs):
    for images, height, width in [(1, 1, 1), (2, 4, 4), (1, 8, 37), (3, 13, 6)]:
        x, weight, bias = random_case(images, channels, outputs, height, width)
        value = convolve(x.contiguous(memory_format=torch.channels_last), weight, bias)
        assert_close(value.double(), exact(x, weight, bias), rtol=0, atol=LARGEST_ERROR)


def test_every_size_of_image_up_to_two_tiles():
    for height in range(1, 10):
        for width in range(1, 10):
            x, weight, bias = random_case(2, 5, 20, height, width)
            assert_close(convolve(x, weight, bias).double(), exact(x, weight, bias), rtol=0, atol=LARGEST_ERROR)


@pytest.mark.parametrize("positive", [False, True], ids=["normal", "after relu"])
@pytest.mark.parametrize("channels", [64, 256])
def test_error_is_as_small_as_promised(channels, positive):
    x, weight, _ = random_case(1, channels, 256, 40, 60)
    x = x.relu() if positive else x
    expected = exact(x, weight)
    error = (convolve(x, weight) - expected) / expected.std()
    assert error.abs().max() < LARGEST_ERROR
    assert error.square().mean().sqrt() < MEAN_ERROR


def test_error_of_single_weights_and_inputs():
    """One input and one weight at a time, of every place in a tile: nothing is hidden in a sum."""
    size = 11
    x = torch.eye(size * size).view(-1, 1, size, size)
    weight = torch.eye(9).view(9, 1, 3, 3)
    assert_close(convolve(x, weight), F.conv2d(x, weight, padding=1), rtol=0, atol=3e-6)


@pytest.mark.parametrize("relu", [False, True])
def test_equals_reference(relu):
    x, weight, bias = random_case(2, 20, 40, 10, 23)
    value = ops.conv3x3(x, weight, bias, relu)
    expected = reference.conv3x3(x.double(), weight.double(), bias.double(), relu)
    assert_close(value.double(), expected, rtol=0, atol=LARGEST_ERROR)
    assert (value.min() == 0) == relu


def test_reference_is_a_convolution():
    x, weight, bias = (tensor.double() for tensor in random_case(2, 5, 18, 7, 9))
    value = reference.conv3x3(x, weight, bias)
    assert_close(value, F.conv2d(x, weight, bias, padding=1), rtol=1e-12, atol=1e-12)


def test_more_than_one_task():
    """So many tiles and channels that the work is divided along both."""
    for height, width, channels, outputs in [(61, 83, 16, 16), (25, 42, 96, 80), (5, 300, 200, 36)]:
        x, weight, bias = random_case(2, channels, outputs, height, width)
        assert_close(convolve(x, weight, bias).double(), exact(x, weight, bias), rtol=0, atol=LARGEST_ERROR)


def test_more_weights_than_are_transformed_at_a_time():
    for channels, outputs in [(512, 272), (1800, 70)]:  # 17 panels, of which 14 fit into 16 MB; 5, of which 4 do
        x, weight, bias = random_case(1, channels, outputs, 6, 9)
        assert_close(convolve(x, weight, bias).double(), exact(x, weight, bias), rtol=0, atol=2 * LARGEST_ERROR)


def test_result_larger_than_the_caches():
    x, weight, bias = random_case(1, 2, 128, 301, 230)  # 35 MB, written past the caches
    assert_close(convolve(x, weight, bias).double(), exact(x, weight, bias), rtol=0, atol=LARGEST_ERROR)


# --- no numbers, and strange ones -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 5, 7, 9), (2, 5, 0, 9), (2, 5, 7, 0)])
def test_empty_batch_and_image(shape):
    value = convolve(torch.zeros(shape), torch.zeros(18, 5, 3, 3), torch.ones(18))
    assert value.shape == (shape[0], 18, *shape[2:])


def test_no_channels():
    assert_close(
        convolve(torch.zeros(1, 0, 5, 6), torch.zeros(18, 0, 3, 3), torch.arange(18.0)),
        torch.arange(18.0).view(1, 18, 1, 1).expand(1, 18, 5, 6),
    )
    assert convolve(torch.zeros(1, 4, 5, 6), torch.zeros(0, 4, 3, 3)).shape == (1, 0, 5, 6)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_nan_in_x_spreads_over_its_tile_and_its_neighbours_and_no_further(value):
    x, weight, _ = random_case(2, 3, 17, 14, 15)
    for y, column in [(0, 0), (5, 6), (7, 4), (8, 11), (13, 14)]:
        strange = x.clone()
        strange[1, 2, y, column] = value
        result = convolve(strange, weight)
        rows, columns = torch.arange(14), torch.arange(15)
        in_rows = (rows // 4 == y // 4) | ((rows - y).abs() <= 1)
        in_columns = (columns // 4 == column // 4) | ((columns - column).abs() <= 1)
        poisoned = torch.zeros(2, 17, 14, 15, dtype=torch.bool)
        poisoned[1] = in_rows[:, None] & in_columns
        assert torch.equal(~result.isfinite(), poisoned)
        assert torch.equal(result[~poisoned], convolve(x, weight)[~poisoned])


@pytest.mark.parametrize("value", [NAN, INF])
def test_nan_in_weight_and_bias_stays_in_its_channel(value):
    x, weight, bias = random_case(2, 3, 18, 5, 6)
    weight[4, 1, 0, 2] = bias[17] = value
    result = convolve(x, weight, bias)
    assert result[:, 4].isnan().all()
    assert result[:, 17].eq(value).all() or result[:, 17].isnan().all()
    others = [c for c in range(18) if c not in (4, 17)]
    assert result[:, others].isfinite().all()


def test_relu_keeps_nan():
    x, weight, _ = random_case(1, 3, 16, 4, 4)
    x[0, 0, 1, 1] = NAN
    assert convolve(x, weight, relu=True).isnan().all()


# --- memory, threads, compilation -------------------------------------------------------------------------------------


def test_any_memory_gives_the_same_in_channels_last():
    x, weight, bias = random_case(2, 18, 20, 12, 14)
    expected = convolve(x.contiguous(memory_format=torch.channels_last), weight, bias)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    wide = torch.zeros(2, 18, 14, 20)
    wide[:, :, 1:-1, 3:17] = x
    for form in (x, wide[:, :, 1:-1, 3:17], x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert_close(convolve(form, weight, bias), expected, rtol=0, atol=0)
    transposed = weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    strided = torch.stack([bias, bias], 1)[:, 0]
    assert_close(convolve(x, transposed, strided), expected, rtol=0, atol=0)


def test_same_for_any_number_of_threads():
    for height, width, channels, outputs in [(61, 83, 16, 48), (25, 42, 96, 80), (4, 4, 100, 64)]:
        x, weight, bias = random_case(1, channels, outputs, height, width)
        assert_same_for_any_number_of_threads(lambda x=x, w=weight, b=bias: convolve(x, w, b))


def test_an_image_does_not_depend_on_its_batch():
    x, weight, bias = random_case(3, 40, 33, 9, 21)
    whole = convolve(x, weight, bias)
    for i in range(3):
        assert torch.equal(convolve(x[i : i + 1], weight, bias)[0], whole[i])


@pytest.mark.parametrize("with_bias", [False, True])
def test_opcheck(with_bias):
    x, weight, bias = random_case(2, 5, 20, 6, 7)
    torch.library.opcheck(torch.ops.fastrcnn.conv3x3.default, (x, weight, bias if with_bias else None, with_bias))


def test_compile_and_export():
    x, weight, bias = random_case(2, 5, 20, 6, 7)
    assert_compiles_and_exports(convolve, x, weight, bias)
    assert_compiles_and_exports(lambda x: ops.conv3x3(x, weight, bias, True), x)


def test_no_gradient():
    x, weight, bias = random_case(1, 3, 4, 5, 6)
    for which in range(3):
        arguments = [tensor.clone().requires_grad_(i == which) for i, tensor in enumerate((x, weight, bias))]
        with pytest.raises(RuntimeError, match="has no backward pass: expected arguments that require no gradient"):
            ops.conv3x3(*arguments)
        with torch.no_grad():
            assert torch.equal(ops.conv3x3(*arguments), ops.conv3x3(x, weight, bias))


# --- wrong input ------------------------------------------------------------------------------------------------------

X, WEIGHT, BIAS = torch.zeros(2, 3, 8, 8), torch.zeros(20, 3, 3, 3), torch.zeros(20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], WEIGHT, BIAS), r"x: expected shape \[N, channels, height, width\], got \[3, 8, 8\]"),
        ((X.double(), WEIGHT, BIAS), "x: expected dtype float32, got float64"),
        (
            (X[:, :2], WEIGHT, BIAS),
            r"weight: expected shape \[out_channels, 2, 3, 3\] \(2 channels as in x\), got \[20, 3",
        ),
        ((X, torch.zeros(4, 3, 5, 5), None), r"weight: expected shape \[out_channels, 3, 3, 3\].*got \[4, 3, 5, 5\]"),
        ((X, WEIGHT.half(), BIAS), "weight: expected dtype float32, got float16"),
        ((X, WEIGHT, BIAS[1:]), r"bias: expected shape \[20\], one per output channel, got \[19\]"),
        ((X, WEIGHT, BIAS.double()), "bias: expected dtype float32, got float64"),
    ],
)
def test_wrong_input(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        ops.conv3x3(*arguments)
