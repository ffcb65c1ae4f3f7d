import numpy as np
import pytest
import torch
from transformers import LlavaNextModel, LlavaNextProcessor
from transformers.models.llava_next import modeling_llava_next as modeling

from demo.checkpoint import Shape, build_config, build_processor, byte_tokenizer
from pipeline.preprocess.geometry import Anyres, num_image_tokens, num_tiles, scaled_size, select_grid
from schemas.sample import Size
from tests.images import random_sizes

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # height, width
LLAVA = Anyres(tile=336, patch=14, grids=tuple(Size(width, height) for height, width in PINPOINTS))
MANY_SIZES = [Size(*size) for size in random_sizes(10_000, most=5000)]
ODD_SIZES = [Size(1, 1), Size(1, 1000), Size(1000, 1), Size(3000, 40), Size(40, 3000), Size(336, 336), Size(337, 671)]


@pytest.mark.parametrize(
    ("image", "grid", "tokens"),
    [
        pytest.param(Size(336, 336), Size(672, 336), 1176, id="a small square takes the first of two equal grids"),
        pytest.param(Size(1024, 768), Size(672, 672), 2340, id="landscape photo"),
        pytest.param(Size(768, 1024), Size(672, 672), 2352, id="portrait photo"),
        pytest.param(Size(672, 672), Size(672, 672), 2928, id="the most tokens"),
        pytest.param(Size(1920, 1080), Size(672, 672), 1948, id="full HD"),
        pytest.param(Size(1000, 100), Size(1008, 336), 1160, id="wide"),
        pytest.param(Size(100, 1000), Size(336, 1008), 1224, id="tall"),
        pytest.param(Size(3000, 40), Size(1008, 336), 576, id="very wide: no rows are left"),
        pytest.param(Size(1, 1000), Size(336, 1008), 648, id="very tall: only newlines are left"),
        pytest.param(Size(1, 1), Size(672, 336), 1176, id="one pixel"),
    ],
)
def test_an_image_has_the_grid_and_tokens_that_are_published(image, grid, tokens) -> None:
    assert select_grid(image, LLAVA) == grid
    assert num_image_tokens(image, LLAVA) == tokens
    assert num_tiles(image, LLAVA) == 1 + grid.width * grid.height // 336**2


def test_10_000_sizes_have_the_token_count_of_the_models_own_unpadding() -> None:
    wrong = [size for size in MANY_SIZES + ODD_SIZES if num_image_tokens(size, LLAVA) != tokens_by_unpadding(size)]
    assert not wrong


def test_10_000_sizes_have_the_token_count_of_the_processor() -> None:
    processor = llava_processor()
    wrong = [
        size
        for size in MANY_SIZES + ODD_SIZES
        if num_image_tokens(size, LLAVA) != processor._get_number_of_features(size.height, size.width, 336, 336) - 1
    ]
    assert not wrong


def test_token_and_tile_counts_are_those_that_the_model_packs() -> None:
    shape = Shape(tile=336)
    model = LlavaNextModel(build_config(shape, vocabulary=100)).eval()
    sizes = ODD_SIZES + MANY_SIZES[:300]
    features = [torch.zeros(num_tiles(size, LLAVA), 24 * 24, 4) for size in sizes]
    hw = torch.tensor([(size.height, size.width) for size in sizes])
    packed, lengths = model.pack_image_features(features, hw, "default", image_newline=torch.zeros(4))
    assert [num_image_tokens(size, LLAVA) for size in sizes] == lengths.tolist() == [len(one) for one in packed]


def test_a_tile_that_patches_do_not_fill_counts_whole_patches_only() -> None:
    anyres = Anyres(tile=60, patch=14, grids=(Size(120, 60),))
    assert num_image_tokens(Size(120, 60), anyres) == 4 * 4 + 4 * (8 + 1)


def test_a_scaled_image_touches_its_grid_and_is_never_empty() -> None:
    for size in MANY_SIZES + ODD_SIZES:
        grid = select_grid(size, LLAVA)
        scaled = scaled_size(size, grid)
        assert scaled.width == grid.width or scaled.height == grid.height
        assert 1 <= scaled.width <= grid.width
        assert 1 <= scaled.height <= grid.height


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"grids": ()}, "grids must name at least one size"),
        ({"grids": (Size(336, 500),)}, r"grids must be multiples of the tile's 336 pixels, got Size\(width=336, heigh"),
        ({"grids": (Size(0, 336),)}, "grids must be multiples"),
        ({"patch": 0}, "patch must be between 1 and the tile's 336 pixels, got 0"),
    ],
)
def test_a_wrong_geometry_is_refused_by_name(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        Anyres(**{"tile": 336, "patch": 14, "grids": LLAVA.grids} | wrong)


def tokens_by_unpadding(image: Size) -> int:
    """What transformers' functions leave of a feature map of this image's grid."""
    hw = (image.height, image.width)
    rows, columns = modeling.get_anyres_image_grid_shape(hw, PINPOINTS, 336)
    features = torch.from_numpy(np.empty((1, 24 * rows, 24 * columns), np.uint8))
    _, height, width = modeling.unpad_image(features, hw).shape
    return 24 * 24 + height * (width + 1)


def llava_processor() -> LlavaNextProcessor:
    return build_processor(Shape(tile=336), byte_tokenizer())
