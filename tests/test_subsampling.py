"""Fewer of something: random, in order, the same each time."""

from flexqwen.subsampling import subsample

ITEMS = [f"item {number}" for number in range(50)]


def test_a_limit_takes_always_the_same_items_in_their_order():
    chosen = subsample(ITEMS, 7)
    assert len(chosen) == 7 and chosen == sorted(chosen, key=ITEMS.index) == subsample(ITEMS, 7)
    assert chosen != ITEMS[:7] and chosen != subsample(ITEMS, 7, seed=1)


def test_no_limit_or_a_large_one_takes_all():
    assert subsample(ITEMS, None) == subsample(ITEMS, 50) == subsample(ITEMS, 99) == ITEMS


def test_a_smaller_limit_takes_a_part_of_a_larger_one():
    assert set(subsample(ITEMS, 7)) < set(subsample(ITEMS, 20))
