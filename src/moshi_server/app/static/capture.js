// An AudioWorklet: what the microphone hears, as mono frames of 1920 samples at 24 kHz.

import { Framer } from "./resample.js";

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.framer = new Framer(sampleRate, (frame) => this.port.postMessage(frame, [frame.buffer]));
  }

  process(inputs) {
    const channels = inputs[0];
    if (!channels.length) return true;
    const mono = new Float32Array(channels[0].length);
    for (const channel of channels) for (let i = 0; i < mono.length; i++) mono[i] += channel[i] / channels.length;
    this.framer.push(mono);
    return true;
  }
}

registerProcessor("capture", Capture);
