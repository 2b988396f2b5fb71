import torch

from mtrl.seeding import make_generator


def _draw(seed, purpose):
    return torch.rand(100, generator=make_generator(seed, purpose))


def test_a_stream_repeats_for_its_seed_and_purpose():
    assert torch.equal(_draw(3, "replay"), _draw(3, "replay"))


def test_other_seeds_and_purposes_have_streams_of_their_own():
    streams = [_draw(seed, purpose) for seed in (0, 1) for purpose in ("replay", "noise", "")]
    for index, stream in enumerate(streams):
        for other in streams[:index]:
            assert torch.corrcoef(torch.stack([stream, other]))[0, 1].abs() < 0.4
            assert not torch.isin(stream, other).any()
