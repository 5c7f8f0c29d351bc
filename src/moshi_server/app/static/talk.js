// Talk: full-duplex dialogue over the one-byte protocol, Opus both ways by the browser's own codecs.

import { FRAME, loudness, microphone, Player, RATE } from "./audio.js";
import { Demuxer, Muxer } from "./ogg.js";
import { connect } from "./server.js";

const HANDSHAKE = 0, AUDIO = 1, TEXT = 2, ERROR = 5;
const element = (id) => document.getElementById(id);
const texts = new TextDecoder();

export function talkView(module, notice) {
  const button = element("talk-button");
  const resting = button.textContent;
  let stop = null;

  if (!("AudioEncoder" in window)) {
    button.disabled = true;
    element("conversation").textContent = "This browser has no audio encoder (WebCodecs), or the page is not from https:// or localhost.";
    return;
  }

  button.onclick = async () => {
    if (stop) return stop();
    notice("");
    element("conversation").replaceChildren();
    button.disabled = true;
    const player = new Player();
    const muxer = new Muxer(RATE);
    const demuxer = new Demuxer();
    let sending = false;
    let sent = 0;
    let problem = "";

    const decoder = new AudioDecoder({
      output(data) {
        const pcm = new Float32Array(data.numberOfFrames);
        data.copyTo(pcm, { planeIndex: 0, format: "f32-planar" });
        element("reply-level").value = loudness(pcm);
        player.play(pcm, data.sampleRate);
        data.close();
      },
      error: (error) => (problem = `The reply cannot be decoded: ${error.message}`),
    });
    decoder.configure({ codec: "opus", sampleRate: 48000, numberOfChannels: 1 });
    const encoder = new AudioEncoder({
      output(chunk) {
        const bytes = new Uint8Array(chunk.byteLength);
        chunk.copyTo(bytes);
        send(AUDIO, muxer.packet(bytes, 960));
      },
      error: (error) => (problem = `The microphone cannot be encoded: ${error.message}`),
    });
    encoder.configure({ codec: "opus", sampleRate: RATE, numberOfChannels: 1, bitrate: 32000, opus: { frameDuration: 20000 } });

    function send(kind, bytes) {
      if (socket.readyState !== WebSocket.OPEN) return;
      const frame = new Uint8Array(bytes.length + 1);
      frame[0] = kind;
      frame.set(bytes, 1);
      socket.send(frame);
    }

    let stopMic;
    try {
      stopMic = await microphone((frame) => {
        element("talk-level").value = loudness(frame);
        if (!sending) return;
        encoder.encode(new AudioData({
          format: "f32", sampleRate: RATE, numberOfFrames: FRAME, numberOfChannels: 1, timestamp: (sent * 1e6) / RATE, data: frame,
        }));
        sent += FRAME;
      });
    } catch (error) {
      notice(error);
      button.disabled = false;
      return;
    }

    const socket = connect(module, {}, {
      onmessage(buffer) {
        const bytes = new Uint8Array(buffer);
        const body = bytes.subarray(1);
        switch (bytes[0]) {
          case HANDSHAKE:
            sending = true;
            button.disabled = false;
            button.textContent = "Stop";
            for (const page of muxer.headers) send(AUDIO, page);
            return;
          case AUDIO:
            for (const packet of demuxer.push(body)) {
              decoder.decode(new EncodedAudioChunk({ type: "key", timestamp: 0, data: packet }));
            }
            return;
          case TEXT:
            element("conversation").append(texts.decode(body));
            return;
          case ERROR:
            problem = texts.decode(body);
        }
      },
      onend(why) {
        stopMic();
        for (const codec of [encoder, decoder]) if (codec.state !== "closed") codec.close();
        player.close();
        stop = null;
        button.textContent = resting;
        button.disabled = false;
        element("talk-level").value = element("reply-level").value = 0;
        if (why || problem) notice(why || problem);
      },
    });
    stop = () => socket.close(1000);
  };
}
