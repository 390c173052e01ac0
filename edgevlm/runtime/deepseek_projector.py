"""What must hold of files of DeepSeek-OCR, both generations, before llama.cpp may see them.

Facts: tools/mtmd/models/deepseekocr.cpp, deepseekocr2.cpp and clip.cpp (`PROJECTOR_TYPE_
DEEPSEEKOCR`, `_DEEPSEEKOCR2`), and src/models/deepseek2.cpp. Another rotary base, key heads that do
not divide the others, and tensors of other types or shapes than these are assertions that end the
process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.header import number as header_number
from edgevlm.runtime.header import text as header_text
from edgevlm.runtime.page_canvas import PageCanvas
from edgevlm.runtime.projector_shapes import HINT, blocks, check_shapes, number
from edgevlm.runtime.tile_canvas import TileCanvas

# What the graph fixes, in pixels: a tile, the square of the whole image, a patch.
TILES, SIDE, PATCH = {"deepseekocr": 640, "deepseekocr2": 768}, 1024, 16
_GLOBAL = (2, 5, 8, 11)
_QUERIES = {768: 144, 1024: 256}
_USUAL_TILES, _MAX_TILES = {"deepseekocr": (2, 9), "deepseekocr2": (2, 6)}, 256
# Copies of a picture, as bytes and as float32, on the way to the tower (measured).
_PIXEL_BYTES = 44
_N_CLIP_POSITIONS = 257
_TEXT, _THETA = "deepseek2-ocr", 10_000.0
# What convolutions, interpolations and joins take.
_KERNELS = ("v.sam.patch_embd.weight", "v.sam.neck.0.weight", "v.sam.neck.2.weight")
_KERNEL_TYPES, _TABLE_TYPES = ("F32", "F16"), ("F32",)
_TABLES = (
    *("v.sam.pos_embd.weight", "v.position_embd.weight"),
    *("v.class_embd", "v.image_newline", "v.view_seperator"),
)
Shape = tuple[int, ...]


def check_deepseek_ocr2(file: GGUFFile) -> PageCanvas:
    """Check numbers and tensors of a projector of type `deepseekocr2`, whose numbers are positive.

    Returns:
        How its images are cut.

    Raises:
        GGUFError: a number is absurd, a tensor is missing or has another shape than they say.
    """
    width, n_heads = number(file, "embedding_length"), number(file, "attention.head_count")
    n_kv = number(file, "attention.head_count_kv")
    if n_kv < 1 or n_heads % n_kv or width % (2 * n_heads):
        raise GGUFError(
            f"`{file.path}` has {width} channels in {n_heads} heads with {n_kv} of keys", hint=HINT
        )
    _check_sam(file)
    check_shapes(file, {**_in_sam(file), **_around(file), **_queries(file), **_in_blocks(file)})
    _check_types(file)
    return read_page_canvas(file)


def check_deepseek_ocr(file: GGUFFile) -> PageCanvas:
    """Check numbers and tensors of a projector of type `deepseekocr`, as the other one."""
    width, n_heads = number(file, "embedding_length"), number(file, "attention.head_count")
    if width % n_heads:
        raise GGUFError(f"`{file.path}` has {width} channels in {n_heads} heads", hint=HINT)
    _check_sam(file)
    check_shapes(file, {**_in_sam(file), **_around(file), **_in_clip(file)})
    _check_types(file)
    return read_page_canvas(file)


def _check_sam(file: GGUFFile) -> None:
    sam, heads = number(file, "sam.embedding_length"), number(file, "sam.head_count")
    window, n_layers = number(file, "window_size"), number(file, "sam.block_count")
    if heads < 1 or sam < 1 or sam % heads:
        raise GGUFError(f"`{file.path}` has {sam} channels in {heads} heads of SAM", hint=HINT)
    if not 1 <= window <= SIDE // PATCH or not 1 <= n_layers <= len(file.tensors):
        raise GGUFError(
            f"`{file.path}` has windows of {window} patches in {n_layers} layers", hint=HINT
        )


def _in_sam(file: GGUFFile) -> dict[str, Shape]:
    """Return what stands in the tower: windows, and layers that see the whole image."""
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    width, heads = number(file, "sam.embedding_length"), number(file, "sam.head_count")
    n_ff = shapes.get("v.sam.blk.0.mlp.lin1.weight", (0,))[0]
    wanted: dict[str, Shape] = {}
    for layer in range(number(file, "sam.block_count")):
        side = SIDE // PATCH if layer in _GLOBAL else number(file, "window_size")
        prefix = f"v.sam.blk.{layer}."
        for name in ("attn.pos_h", "attn.pos_w"):
            wanted[f"{prefix}{name}.weight"] = (2 * side - 1, width // heads)
        for name, shape in {
            "pre_ln": (width,),
            "post_ln": (width,),
            "attn.qkv": (3 * width, width),
            "attn.out": (width, width),
            "mlp.lin1": (n_ff, width),
            "mlp.lin2": (width, n_ff),
        }.items():
            wanted[f"{prefix}{name}.weight"] = shape
            wanted[f"{prefix}{name}.bias"] = shape[:1]
    return wanted


def _around(file: GGUFFile) -> dict[str, Shape]:
    """Return what stands outside of both towers' blocks."""
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    width, n_out = number(file, "embedding_length"), number(file, "projection_dim")
    sam, side = number(file, "sam.embedding_length"), SIDE // PATCH
    first, second = (shapes.get(f"v.sam.{name}.weight", (0,))[0] for name in ("neck.0", "net_2"))
    norms = {f"v.sam.neck.{name}.{kind}": (first,) for name in "13" for kind in ("weight", "bias")}
    return {
        "v.sam.pos_embd.weight": (1, side, side, sam),
        "v.sam.patch_embd.weight": (sam, 3, PATCH, PATCH),
        "v.sam.patch_embd.bias": (sam,),
        "v.sam.neck.0.weight": (first, sam, 1, 1),
        "v.sam.neck.2.weight": (first, first, 3, 3),
        "v.sam.net_2.weight": (second, first, 3, 3),
        "v.sam.net_3.weight": (width, second, 3, 3),
        **norms,
        "v.view_seperator": (1, n_out),
        "mm.model.fc.weight": (n_out, width if _kind(file) == "deepseekocr2" else 2 * width),
        "mm.model.fc.bias": (n_out,),
    }


def _kind(file: GGUFFile) -> str:
    return header_text(file, "clip.projector_type") or header_text(
        file, "clip.vision.projector_type"
    )


def _queries(file: GGUFFile) -> dict[str, Shape]:
    width = number(file, "embedding_length")
    queries = {f"v.resample_query_{size}.weight": (n, width) for size, n in _QUERIES.items()}
    return {**queries, "v.post_ln.weight": (width,)}


def _in_clip(file: GGUFFile) -> dict[str, Shape]:
    """Return what CLIP has, and the vector that ends each row of an image."""
    width, n_out = number(file, "embedding_length"), number(file, "projection_dim")
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    n_ff = shapes.get("v.blk.0.ffn_up.weight", (0,))[0]
    wanted: dict[str, Shape] = {
        "v.class_embd": (width,),
        "v.position_embd.weight": (_N_CLIP_POSITIONS, width),
        "v.image_newline": (n_out,),
        "v.pre_ln.weight": (width,),
        "v.pre_ln.bias": (width,),
    }
    for block in blocks(file):
        for name, shape in {
            "attn_qkv": (3 * width, width),
            "attn_out": (width, width),
            "ffn_up": (n_ff, width),
            "ffn_down": (width, n_ff),
            "ln1": (width,),
            "ln2": (width,),
        }.items():
            wanted[f"v.blk.{block}.{name}.weight"] = shape
            wanted[f"v.blk.{block}.{name}.bias"] = shape[:1]
    return wanted


def _in_blocks(file: GGUFFile) -> dict[str, Shape]:
    """Return what stands in the encoder's blocks."""
    width, n_ff = number(file, "embedding_length"), number(file, "feed_forward_length")
    n_kv = width // number(file, "attention.head_count") * number(file, "attention.head_count_kv")
    matrices: Mapping[str, Shape] = {
        "attn_q": (width, width),
        "attn_k": (n_kv, width),
        "attn_v": (n_kv, width),
        "attn_out": (width, width),
        "ffn_gate": (n_ff, width),
        "ffn_up": (n_ff, width),
        "ffn_down": (width, n_ff),
        "ln1": (width,),
        "ln2": (width,),
    }
    wanted: dict[str, Shape] = {}
    for block in blocks(file):
        prefix = f"v.blk.{block}."
        wanted |= {f"{prefix}{name}.weight": shape for name, shape in matrices.items()}
        wanted |= {f"{prefix}attn_{letter}.bias": (0,) for letter in "qkv"}
    return wanted


def _check_types(file: GGUFFile) -> None:
    for tensor in file.tensors:
        name = tensor.name
        is_kernel = name in _KERNELS or name.startswith("v.sam.net_")
        is_table = ".attn.pos_" in name or name in _TABLES
        types = _KERNEL_TYPES if is_kernel else _TABLE_TYPES if is_table else (tensor.type,)
        if tensor.type not in types:
            raise GGUFError(
                f"`{file.path}` holds `{name}` as {tensor.type}: llama.cpp takes"
                f" {' or '.join(types)}",
                hint=HINT,
            )


def read_page_canvas(file: GGUFFile) -> PageCanvas:
    """Return how images are cut.

    Raises:
        GGUFError: into numbers of tiles that no image can have.
    """
    least, most = (
        number(file, f"preproc_{name}_tiles") or usual
        for name, usual in zip(("min", "max"), _USUAL_TILES[_kind(file)], strict=True)
    )
    # Of one tile libmtmd makes the whole image alone.
    if not 2 <= least <= most <= _MAX_TILES:
        raise GGUFError(f"`{file.path}` cuts images into {least} to {most} tiles", hint=HINT)
    tiles = TileCanvas(side=TILES[_kind(file)], max_tiles=most, min_tiles=least)
    return PageCanvas(tiles=tiles, side=SIDE)


def page_graph_n_bytes(
    file: GGUFFile, image_sizes: Sequence[tuple[int, int]], *, flash_attention: bool
) -> int:
    """Return what the vision tower computes in for the largest of images, and their pixels.

    Layers that see a whole picture have a table of its patches x patches for each head, as float32,
    and once more: as F16 for flash attention, else as what comes of it. The first generation takes
    a row of tiles at once. Measured for the whole image with a tower of the published widths: 1280
    MB and 1675 MB, predicted / measured 1.02 for both; with the golden's tower 0.89 for the whole
    (270 MB with all that surrounds the tower), 0.99 for nine tiles in a row (433 MB).

    Args:
        file: the projector's.
        image_sizes: (width, height) in pixels.
        flash_attention: whether it is on.
    """
    n_patches, width = (SIDE // PATCH) ** 2, number(file, "sam.embedding_length")
    # Pairs of patches at once, and pixels of the pieces that are there meanwhile.
    pieces = [(n_patches**2, SIDE**2)]
    if _kind(file) == "deepseekocr":
        canvas = read_page_canvas(file)
        side = canvas.tiles.side
        for columns, rows in (canvas.grid(*size) for size in image_sizes):
            pieces.append((columns * (side // PATCH) ** 4, columns * rows * side**2))
    pair_bytes = number(file, "sam.head_count") * (4 + 2 if flash_attention else 4 + 4)
    most = max(n_pairs * pair_bytes + n_pixels * _PIXEL_BYTES for n_pairs, n_pixels in pieces)
    return most + 6 * 4 * n_patches * width


def check_deepseek_text(file: GGUFFile) -> None:
    """Check what the graph of a text model of DeepSeek-OCR takes for granted.

    Raises:
        GGUFError: the rotary base or the heads are others.
    """
    if file.architecture != _TEXT:
        return
    entry = file.metadata.get(f"{_TEXT}.rope.freq_base")
    theta = entry.value if entry is not None else _THETA
    if theta != _THETA:
        raise GGUFError(
            f"`{file.path}` has the rotary base {theta}, llama.cpp computes {_THETA:g} alone",
            hint=HINT,
        )
    width, heads = (
        header_number(file, f"{_TEXT}.{key}")
        for key in ("embedding_length", "attention.head_count")
    )
    for key, wanted in (
        ("attention.head_count_kv", heads),
        ("attention.key_length", width // max(1, heads)),
        ("attention.value_length", width // max(1, heads)),
    ):
        found = header_number(file, f"{_TEXT}.{key}")
        if width % max(1, heads) or (f"{_TEXT}.{key}" in file.metadata and found != wanted):
            raise GGUFError(
                f"`{file.path}` has {_TEXT}.{key} = {found}, {wanted} can be computed", hint=HINT
            )
