"""Rows cut on the device are the store's audio, pitch and tokens, aligned with each other."""

import numpy as np
import torch

from training.features import FLOW_MARGIN, SAMPLES_PER_TOKEN
from training.speech import Speech, TokenRows, pitch_at
from training.store import FRAME, Store

CPU = torch.device("cpu")


def test_pitch_follows_the_contour_between_frames_and_is_zero_where_unvoiced():
    f0 = torch.tensor([100.0, 200.0, 200.0, 0.0, 0.0]).half()
    middle = torch.tensor([0, 1, 2, 4]) * FRAME + FRAME // 2
    assert pitch_at(f0, middle).tolist() == [100.0, 200.0, 200.0, 0.0]
    assert pitch_at(f0, torch.tensor([FRAME])).tolist() == [150.0]


def test_crops_are_stretches_of_the_audio_with_the_pitch_at_their_frames(store):
    speech = Speech(store, 1.0, CPU)
    speech.refresh()
    audio, pitch = speech.crops(4, 10)
    flat = Store.open(store).pcm()
    for row, hz in zip(audio, pitch, strict=True):
        pcm = (row * 32768).round().short().numpy()
        at = flat.tobytes().index(pcm.tobytes()) // 2 + FLOW_MARGIN
        centres = torch.arange(10) * 480 + 240 + at
        torch.testing.assert_close(hz, pitch_at(torch.from_numpy(Store.open(store).f0), centres))


def test_refreshing_takes_in_new_parts_up_to_the_capacity(store, tmp_path):
    whole = Store.open(store)
    folder = tmp_path / "growing"
    folder.mkdir()
    hours = (whole.start[-1] - 3 * FRAME) / 24000 / 3600
    speech = Speech(folder, hours, CPU)
    assert not speech.refresh()
    for name in ("000", "001"):
        part = Store.open(store, [name])
        (folder / f"part-{name}.pcm").write_bytes(part.pcm().tobytes())
        (folder / f"part-{name}.npz").write_bytes((store / f"part-{name}.npz").read_bytes())
        assert speech.refresh()
    assert speech.samples == speech.capacity == int(speech.ready)
    np.testing.assert_array_equal(speech.pcm.numpy(), whole.pcm()[: speech.capacity])


def test_a_row_holds_each_tokens_own_audio_across_the_ends_of_utterances(store):
    data, whole = TokenRows(store, 1.0, CPU), Store.open(store)
    tokens, audio, part = data.rows(6, 60, 0.5)
    pcm, token = whole.pcm(), data.token[: data.tokens].numpy()
    for row, heard, which in zip(tokens, audio, part, strict=True):
        begin = int(np.flatnonzero((np.lib.stride_tricks.sliding_window_view(token, 60) == row.numpy()).all(1))[0])
        expected = [
            np.pad(pcm[start : start + length], (0, SAMPLES_PER_TOKEN - length))
            for start, length in zip(data.begin[begin : begin + 60], data.filled[begin : begin + 60], strict=True)
        ]
        np.testing.assert_array_equal((heard[FLOW_MARGIN:-FLOW_MARGIN] * 32768).short(), np.concatenate(expected))
        assert which == int(begin >= len(token) - len(np.load(store / "tokens-001.npz")["token"]))


def test_rows_may_all_begin_where_an_utterance_does(store):
    data = TokenRows(store, 1.0, CPU)
    starts = {tuple(data.token[i : i + 20].tolist()) for i in data.first[: data.utterances].clamp(min=1)}
    tokens, _, _ = data.rows(8, 20, 1.0)
    assert {tuple(row.tolist()) for row in tokens} <= starts


def test_every_sample_of_an_utterance_lies_under_one_token(store):
    data, whole = TokenRows(store, 1.0, CPU), Store.open(store)
    assert int(data.filled.sum()) == int(whole.start[-1])
    spans = (data.begin[: data.tokens], data.filled[: data.tokens])
    covered = torch.cat([torch.arange(int(b), int(b + f)) for b, f in zip(*spans, strict=True)])
    assert covered.tolist() == list(range(int(whole.start[-1])))


def test_a_part_without_tokens_is_left_out(store):
    (store / "tokens-000.npz").unlink()
    assert TokenRows(store, 1.0, CPU).names == ["001"]


def test_tokenised_parts_are_taken_in_as_they_come(store):
    late = (store / "tokens-001.npz").read_bytes()
    (store / "tokens-001.npz").unlink()
    data = TokenRows(store, 1.0, CPU)
    before = data.tokens
    (store / "tokens-001.npz").write_bytes(late)
    data.refresh()
    assert data.names == ["000", "001"]
    assert data.part[before - 1 : before + 1].tolist() == [0, 1]
    assert data.ready.tolist() == [data.tokens, data.utterances]
    assert data.samples == int(Store.open(store).start[-1])


def test_a_part_that_does_not_fit_is_left_out(store):
    hours = (Store.open(store, ["000"]).start[-1] + 1) / 24000 / 3600
    assert TokenRows(store, hours, CPU).names == ["000"]
