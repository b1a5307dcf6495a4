"""The order of samples, computed and not stored."""

import pytest

from data.batches.permutation import mix, permute


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_a_permutation_meets_every_element_once(size):
    assert sorted(permute(index, size, key=5) for index in range(size)) == list(range(size))


def test_the_key_decides_the_order():
    orders = {tuple(permute(index, 50, key) for index in range(50)) for key in range(20)}

    assert len(orders) == 20


def test_elements_land_anywhere():
    # Of 2,000 keys each of 8 places should get element 0 about 250 times; 5 standard deviations are 74.
    counts = [0] * 8
    for key in range(2000):
        counts[permute(0, 8, key)] += 1

    assert all(abs(count - 250) < 74 for count in counts)


def test_a_permutation_of_billions_costs_no_memory():
    assert len({permute(index, 45_000_000_000, key=1) for index in range(100)}) == 100


def test_the_order_never_changes_between_versions():
    # A run resumed with a newer checkout must read on where it was: changing these numbers breaks every run.
    assert mix(1024, 0, 1) == 10014072253511480726
    assert [permute(index, 10, key=1024) for index in range(10)] == [8, 1, 3, 4, 6, 0, 2, 9, 7, 5]
