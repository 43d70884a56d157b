"""Sound for a clip: what is accepted, and its encoding in step with the frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from ..errors import LeanVideoError

if TYPE_CHECKING:
    import torch

LAYOUT_OF_CHANNELS = {1: "mono", 2: "stereo", 6: "5.1"}


@runtime_checkable
class Sound(Protocol):
    """Sound that is read piece by piece: `sample_rate` in Hz, `channels` 1, 2 or 6."""

    @property
    def sample_rate(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Samples `start` to `stop` as float [channels, stop - start], silent where there is no sound."""
        ...


def sound_of(value: object) -> Sound:
    """A Sound as it is, and anything else as `Audio.of` takes it."""
    return value if isinstance(value, Sound) and not isinstance(value, Audio) else Audio.of(value)


@dataclass(frozen=True)
class Audio:
    """`waveform_CS` float [channels, samples] in -1..1, `sample_rate` in Hz."""

    waveform_CS: torch.Tensor
    sample_rate: int

    @property
    def channels(self) -> int:
        return self.waveform_CS.shape[0]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Samples `start` to `stop`, silent where there is no sound."""
        from torch.nn.functional import pad

        inside_CS = self.waveform_CS[:, max(0, start) : max(0, stop)]
        before = min(max(0, -start), stop - start)
        return pad(inside_CS, (before, stop - start - before - inside_CS.shape[1]))

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
        if waveform.shape[0] not in LAYOUT_OF_CHANNELS:
            raise LeanVideoError(f"The audio has {waveform.shape[0]} channels: give mono, stereo or 5.1.")
        if not 1000 <= rate <= 384000:
            raise LeanVideoError(f"The audio's sample rate is {rate} Hz: give one from 1000 to 384000.")
        if not bool(torch.isfinite(waveform).all()):
            raise LeanVideoError("The audio holds NaN or infinite values: check the node that made it.")
        return Audio(waveform, rate)


class Soundtrack:
    """Encodes a Sound into a stream of an open PyAV container, as far as the video has come; what is missing at the end is silence."""

    def __init__(self, container: Any, sound: Sound, codec: str, rates: tuple[int, ...]) -> None:
        from av.audio.resampler import AudioResampler

        self._sound = sound
        self._container = container
        layout = LAYOUT_OF_CHANNELS[sound.channels]
        rate = sound.sample_rate if not rates or sound.sample_rate in rates else 48000
        self._stream = container.add_stream(codec, rate=rate)
        self._stream.layout = layout
        self._resampler = AudioResampler(format="fltp", layout=layout, rate=rate)
        self._rate, self._layout = rate, layout
        self._read = self._written = 0

    def advance(self, until: Fraction) -> None:
        """Encode up to `until` seconds."""
        stop = int(until * self._sound.sample_rate)
        while self._read < stop:
            piece_CS = self._sound.read(self._read, min(stop, self._read + self._sound.sample_rate))
            self._encode(self._resampler.resample(_frame(piece_CS, self._layout, self._sound.sample_rate, self._read)))
            self._read += piece_CS.shape[1]

    def finish(self, until: Fraction) -> None:
        """Encode what is left so that the sound lasts `until` seconds, and flush the encoder."""
        import torch

        self.advance(until)
        total = round(until * self._rate)
        self._encode(self._resampler.resample(None), total)
        if self._written < total:
            rest_CS = torch.zeros(self._sound.channels, total - self._written)
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
