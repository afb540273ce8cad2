import torch
from hypothesis import given
from hypothesis import strategies as st

from dropkey_cli.seeds import derived_seed, seed_generators


def test_seeds_do_not_change_between_releases() -> None:
    # From hashlib.blake2b(b"0,0,0,0", digest_size=8); a resumed run must find the masks and images it had
    assert derived_seed(0, 0, 0, 0) == 2235979303852607087


def test_any_other_number_is_another_seed() -> None:
    numbers = [(a, b, c, d) for a in range(5) for b in range(5) for c in range(40) for d in range(8)]
    assert len({derived_seed(*four) for four in numbers}) == len(numbers)
    assert derived_seed(1, 23) != derived_seed(12, 3) != derived_seed(123)


@given(*[st.integers(min_value=0, max_value=2**63)] * 4)
def test_seeds_are_63_bit(a: int, b: int, c: int, d: int) -> None:
    assert 0 <= derived_seed(a, b, c, d) < 2**63


def test_generators_start_at_the_seed() -> None:
    seed_generators(2**62 + 1, torch.device("cpu"))
    drawn = torch.rand(5)
    assert torch.equal(torch.rand(5, generator=torch.Generator().manual_seed(2**62 + 1)), drawn)
