"""Generated documents: seeded, disjoint, legible."""

from __future__ import annotations

import pytest

from nvlm_deploy.preprocess.tiles import choose_grid
from nvlm_deploy.synthetic.canvas import UNITS_PER_TILE
from nvlm_deploy.synthetic.documents import KINDS, MARGIN_X, MARGIN_Y, document, samples


def test_same_index_same_page() -> None:
    first, again = document("heldout", 3), document("heldout", 3)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.exchanges == again.exchanges


def test_splits_differ() -> None:
    train = {document("train", i).image.tobytes() for i in range(50)}
    assert not any(document("heldout", i).image.tobytes() in train for i in range(50))


def test_samples_cover_every_kind_and_several_grids() -> None:
    pages = list(samples("heldout", 200))
    assert {page.kind for page in pages} == set(KINDS)
    grids = {choose_grid(*page.image.size, 112, 1, 6) for page in pages}
    assert grids == {(1, 1), (2, 1), (2, 2), (3, 2)}


@pytest.mark.parametrize("index", range(30))
def test_answers_stand_on_the_page_and_no_tile_edge_cuts_them(index: int) -> None:
    page = document("heldout", index)
    columns, rows = choose_grid(*page.image.size, 112, 1, 6)
    words = page.transcript.split()
    assert all(exchange.answer in words for exchange in page.exchanges)
    assert "".join(words) == "".join(glyph.character for glyph in page.glyphs)
    for glyph in page.glyphs:
        assert 0 < glyph.x < 1
        assert 0 < glyph.y < 1
        for place, tiles, margin in ((glyph.x, columns, MARGIN_X), (glyph.y, rows, MARGIN_Y)):
            edges = [abs(place * tiles - edge) * UNITS_PER_TILE for edge in range(1, tiles)]
            assert all(distance >= margin for distance in edges)


def test_totals_add_up() -> None:
    receipts = [document("heldout", i, kinds=("receipt",)) for i in range(20)]
    for page in receipts:
        total, *prices = (int(exchange.answer) for exchange in page.exchanges)
        assert total == sum(prices)


def test_larger_tiles_draw_the_same_page_larger() -> None:
    small, large = document("heldout", 8, tile_size=112), document("heldout", 8, tile_size=448)
    assert small.exchanges == large.exchanges
    assert abs(large.image.width / small.image.width - 4) < 0.05
