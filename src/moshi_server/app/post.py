"""A recording in one POST, an array in one answer: `PyPost`; it knows no model and no script."""

from __future__ import annotations

import asyncio

from starlette.responses import Response
from structlog.contextvars import bind_contextvars

from ..audio import read_audio
from ..engine.post import ten_seconds
from ..errors import EngineFailedError
from ..events import Audio, Voice
from ..protocol import tts_client
from .upload import Uploads


class VoiceUploads(Uploads):
    """The POSTs of one `PyPost` module: an audio file each, answered ``{type: "Voice", embeddings, shape}``."""

    async def _respond(self, body: bytes) -> Response:
        self._module.metrics.connected()
        pcm = ten_seconds(await asyncio.to_thread(read_audio, body))
        session = await self._module.engine.open(wait_seconds=self._module.limits.post_wait_seconds)
        bind_contextvars(session=session.id)
        try:
            await session.send(Audio(pcm))
            while events := await session.receive():
                for event in events:
                    if isinstance(event, Voice):
                        # Upstream's answer is what its text to speech takes as a voice, byte for byte.
                        return Response(tts_client.encode(event), media_type="application/octet-stream")
        finally:
            session.close()
        raise EngineFailedError("the recording was not answered")
