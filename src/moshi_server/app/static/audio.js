// Sound in and out: the microphone, files, and a player for frames that arrive one by one. Everything is 24 kHz mono.

import { FRAME, Framer, RATE } from "./resample.js";

export { FRAME, RATE };

/** Frames of 1920 samples from the microphone to `onframe`, until the returned function is called. Throws a sentence. */
export async function microphone(onframe) {
  if (!navigator.mediaDevices) {
    throw new Error("The browser gives the microphone only to pages from https:// or localhost.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
  } catch (error) {
    if (error.name === "NotAllowedError") throw new Error("The microphone was refused. Allow it in the browser's address bar.");
    if (error.name === "NotFoundError") throw new Error("There is no microphone on this machine.");
    throw new Error(`The microphone cannot be used: ${error.message}`);
  }
  const stop = "MediaStreamTrackProcessor" in window ? readTrack(stream, onframe) : await throughWorklet(stream, onframe);
  return () => {
    stop();
    for (const track of stream.getTracks()) track.stop();
  };
}

/** Every sample waits until it is read: where the machine is busy, with a model of ours for one, none is lost. */
function readTrack(stream, onframe) {
  // A block is 10 ms.
  const { readable } = new MediaStreamTrackProcessor({ track: stream.getAudioTracks()[0], maxBufferSize: 1000 });
  const reader = readable.getReader();
  let stopped = false;
  let framer = null;
  let rate = 0;
  (async () => {
    for (;;) {
      const { done, value: block } = await reader.read();
      if (done) return;
      if (rate !== block.sampleRate) framer = new Framer((rate = block.sampleRate), (frame) => stopped || onframe(frame));
      const mono = new Float32Array(block.numberOfFrames);
      block.copyTo(mono, { planeIndex: 0, format: "f32-planar" });
      block.close();
      framer.push(mono);
    }
  })();
  return () => {
    stopped = true;
    reader.cancel();
  };
}

/** For browsers that give a track's samples only to their audio graph, which has a clock of its own and loses some under load. */
async function throughWorklet(stream, onframe) {
  let context = new AudioContext({ sampleRate: RATE });
  let source;
  try {
    source = context.createMediaStreamSource(stream);
  } catch {
    await context.close(); // some browsers want the device's own rate
    context = new AudioContext();
    source = context.createMediaStreamSource(stream);
  }
  await context.audioWorklet.addModule(new URL("capture.js", import.meta.url));
  const node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
  node.port.onmessage = (event) => onframe(event.data);
  source.connect(node);
  return () => {
    node.port.onmessage = null;
    context.close();
  };
}

/** A recording's samples; whatever the browser can decode. Throws a sentence. */
export async function decodeFile(file) {
  const context = new OfflineAudioContext(1, 1, RATE);
  let decoded;
  try {
    decoded = await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} holds no audio that this browser can decode.`);
  }
  const mono = new Float32Array(decoded.length);
  for (let c = 0; c < decoded.numberOfChannels; c++) {
    const channel = decoded.getChannelData(c);
    for (let i = 0; i < mono.length; i++) mono[i] += channel[i] / decoded.numberOfChannels;
  }
  return mono;
}

/** How loud a frame is, 0 to 1, as an ear would put it. */
export function loudness(frame) {
  let sum = 0;
  for (const value of frame) sum += value * value;
  const decibels = 10 * Math.log10(sum / frame.length + 1e-9);
  return Math.min(1, Math.max(0, (decibels + 60) / 60));
}

/** Plays frames one after another as they come. */
export class Player {
  constructor() {
    this.context = new AudioContext({ sampleRate: RATE });
    this.begin = null;
    this.end = 0;
  }

  play(pcm, rate = RATE) {
    const buffer = this.context.createBuffer(1, pcm.length, rate);
    buffer.copyToChannel(pcm, 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    // A little ahead, so that the next frame may be late by as much.
    if (this.begin === null) this.begin = this.end = this.context.currentTime + 0.1;
    this.end = Math.max(this.end, this.context.currentTime + 0.02);
    source.start(this.end);
    this.end += buffer.duration;
  }

  /** Seconds of sound that have been heard. */
  get position() {
    return this.begin === null ? 0 : this.context.currentTime - this.begin;
  }

  get idle() {
    return this.context.currentTime >= this.end;
  }

  close() {
    return this.context.close();
  }
}
