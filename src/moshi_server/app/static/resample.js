// Samples of any rate, block after block, as mono frames of 1920 samples at 24 kHz.

export const RATE = 24000;
export const FRAME = 1920;
const ZEROS = 16; // zero crossings of the sinc to either side

/** `push(samples)` gives each frame that they complete to `onframe`. A windowed sinc keeps what 24 kHz cannot hold out of it. */
export class Framer {
  constructor(rate, onframe) {
    this.onframe = onframe;
    this.frame = new Float32Array(FRAME);
    this.filled = 0;
    const common = divisor(rate, RATE);
    this.up = RATE / common; // as many phases has the filter
    this.down = rate / common;
    const cutoff = Math.min(1, RATE / rate) * 0.94; // of the input's Nyquist frequency
    this.half = rate === RATE ? 0 : Math.ceil(ZEROS / cutoff);
    this.taps = [];
    for (let phase = 0; phase < this.up && this.half; phase++) {
      this.taps.push(Float32Array.from({ length: 2 * this.half }, (_, k) => {
        const distance = k + 1 - this.half - phase / this.up;
        const x = Math.PI * cutoff * distance;
        return cutoff * (x ? Math.sin(x) / x : 1) * Math.cos((Math.PI / 2) * Math.min(1, Math.abs(distance / this.half))) ** 2;
      }));
    }
    this.waiting = new Float32Array(this.half && this.half - 1); // the input that the next sample needs
    this.phase = 0;
  }

  push(samples) {
    if (!this.half) {
      for (const value of samples) this.#add(value);
      return;
    }
    const input = new Float32Array(this.waiting.length + samples.length);
    input.set(this.waiting);
    input.set(samples, this.waiting.length);
    let at = 0;
    while (at + 2 * this.half <= input.length) {
      const taps = this.taps[this.phase];
      let value = 0;
      for (let k = 0; k < taps.length; k++) value += taps[k] * input[at + k];
      this.#add(value);
      this.phase += this.down;
      at += Math.floor(this.phase / this.up);
      this.phase %= this.up;
    }
    this.waiting = input.slice(at);
  }

  #add(value) {
    this.frame[this.filled++] = value;
    if (this.filled < FRAME) return;
    const full = this.frame;
    this.frame = new Float32Array(FRAME);
    this.filled = 0;
    this.onframe(full);
  }
}

function divisor(a, b) {
  return b ? divisor(b, a % b) : a;
}
