"""Sound for a clip: what is accepted, and its encoding in step with the frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

from ..errors import LeanVideoError

if TYPE_CHECKING:
    import torch

_LAYOUT_OF_CHANNELS = {1: "mono", 2: "stereo", 6: "5.1"}


@dataclass(frozen=True)
class Audio:
    """`waveform_CS` float [channels, samples] in -1..1, `sample_rate` in Hz."""

    waveform_CS: torch.Tensor
    sample_rate: int

    @staticmethod
    def of(value: object) -> Audio:
        """The audio in ComfyUI's `{"waveform": [B,C,S], "sample_rate": Hz}` (of a batch, the first) or in an Audio.

        Raises LeanVideoError where there are no samples, NaN, a channel count other than 1, 2 or 6, or no usable sample rate.
        """
        import torch

        if isinstance(value, Audio):
            waveform, rate = value.waveform_CS, value.sample_rate
        elif isinstance(value, Mapping) and "waveform" in value and "sample_rate" in value:
            fields = cast("Mapping[str, Any]", value)
            waveform, rate = fields["waveform"], int(fields["sample_rate"])
        else:
            raise LeanVideoError(f"The audio is a {type(value).__name__} without waveform and sample_rate: connect an AUDIO output.")
        waveform = torch.as_tensor(waveform).detach().to("cpu").float()
        if waveform.ndim == 3 and waveform.shape[0] > 0:
            waveform = waveform[0]
        if waveform.ndim != 2 or waveform.numel() == 0:
            raise LeanVideoError(f"The audio has no samples (its shape is {list(waveform.shape)}): disconnect it or give audio that is not empty.")
        if waveform.shape[0] not in _LAYOUT_OF_CHANNELS:
            raise LeanVideoError(f"The audio has {waveform.shape[0]} channels: give mono, stereo or 5.1.")
        if not 1000 <= rate <= 384000:
            raise LeanVideoError(f"The audio's sample rate is {rate} Hz: give one from 1000 to 384000.")
        if not bool(torch.isfinite(waveform).all()):
            raise LeanVideoError("The audio holds NaN or infinite values: check the node that made it.")
        return Audio(waveform, rate)


class Soundtrack:
    """Encodes an Audio into a stream of an open PyAV container, as far as the video has come; what is missing at the end is silence."""

    def __init__(self, container: Any, audio: Audio, codec: str, rates: tuple[int, ...]) -> None:
        from av.audio.resampler import AudioResampler

        self._audio = audio
        self._container = container
        layout = _LAYOUT_OF_CHANNELS[audio.waveform_CS.shape[0]]
        rate = audio.sample_rate if not rates or audio.sample_rate in rates else 48000
        self._stream = container.add_stream(codec, rate=rate)
        self._stream.layout = layout
        self._resampler = AudioResampler(format="fltp", layout=layout, rate=rate)
        self._rate, self._layout = rate, layout
        self._read = self._written = 0

    def advance(self, until: Fraction) -> None:
        """Encode up to `until` seconds."""
        import torch

        stop = int(until * self._audio.sample_rate)
        while self._read < stop:
            piece_CS = self._audio.waveform_CS[:, self._read : min(stop, self._read + self._audio.sample_rate)]
            if piece_CS.shape[1] == 0:
                piece_CS = torch.zeros(self._audio.waveform_CS.shape[0], min(stop - self._read, self._audio.sample_rate))
            self._encode(self._resampler.resample(_frame(piece_CS, self._layout, self._audio.sample_rate, self._read)))
            self._read += piece_CS.shape[1]

    def finish(self, until: Fraction) -> None:
        """Encode what is left so that the sound lasts `until` seconds, and flush the encoder."""
        import torch

        self.advance(until)
        total = round(until * self._rate)
        self._encode(self._resampler.resample(None), total)
        if self._written < total:
            rest_CS = torch.zeros(self._audio.waveform_CS.shape[0], total - self._written)
            self._encode([_frame(rest_CS, self._layout, self._rate, self._written)])
        self._container.mux(self._stream.encode(None))

    def _encode(self, frames: list[Any], total: int | None = None) -> None:
        for frame in frames:
            count = frame.samples if total is None else min(frame.samples, total - self._written)
            if count <= 0:
                return
            if count < frame.samples:
                import torch

                frame = _frame(torch.from_numpy(frame.to_ndarray()[:, :count].copy()), self._layout, self._rate, 0)
            frame.pts, frame.time_base = self._written, Fraction(1, self._rate)
            self._written += count
            self._container.mux(self._stream.encode(frame))


def _frame(waveform_CS: torch.Tensor, layout: str, rate: int, pts: int) -> Any:
    from av import AudioFrame

    frame = AudioFrame.from_ndarray(waveform_CS.contiguous().numpy(), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, pts, Fraction(1, rate)
    return frame
