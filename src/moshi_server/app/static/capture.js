// An AudioWorklet: what the microphone hears, as mono frames of 1920 samples at 24 kHz.

const RATE = 24000;
const FRAME = 1920;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.frame = new Float32Array(FRAME);
    this.filled = 0;
    this.phase = 0; // where the next sample lies in the block, in samples of the context
    this.last = 0;
  }

  process(inputs) {
    const channels = inputs[0];
    if (!channels.length) return true;
    const length = channels[0].length;
    const mono = new Float32Array(length);
    for (const channel of channels) for (let i = 0; i < length; i++) mono[i] += channel[i] / channels.length;
    if (sampleRate === RATE) for (const value of mono) this.push(value);
    else this.resample(mono);
    return true;
  }

  /** Linear: only for browsers that cannot capture at 24 kHz. */
  resample(mono) {
    const step = sampleRate / RATE;
    for (; this.phase < mono.length; this.phase += step) {
      const at = Math.floor(this.phase);
      const before = at > 0 ? mono[at - 1] : this.last;
      this.push(before + (mono[at] - before) * (this.phase - at));
    }
    this.phase -= mono.length;
    this.last = mono[mono.length - 1];
  }

  push(value) {
    this.frame[this.filled++] = value;
    if (this.filled === FRAME) {
      this.port.postMessage(this.frame, [this.frame.buffer]);
      this.frame = new Float32Array(FRAME);
      this.filled = 0;
    }
  }
}

registerProcessor("capture", Capture);
