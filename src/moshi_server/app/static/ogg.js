// Ogg/Opus pages: packets into pages and pages into packets; it codes no sound.

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n << 24;
  for (let bit = 0; bit < 8; bit++) value = value & 0x80000000 ? (value << 1) ^ 0x04c11db7 : value << 1;
  return value >>> 0;
});

function checksum(bytes) {
  let crc = 0;
  for (const byte of bytes) crc = ((crc << 8) ^ CRC[(crc >>> 24) ^ byte]) >>> 0;
  return crc;
}

/** Makes a page of each packet; `headers` are the two pages that come first. */
export class Muxer {
  constructor(sampleRate) {
    this.serial = Math.floor(Math.random() * 2 ** 32);
    this.sequence = 0;
    this.granule = 0;
    const head = new DataView(new ArrayBuffer(19));
    "OpusHead".split("").forEach((letter, i) => head.setUint8(i, letter.charCodeAt(0)));
    head.setUint8(8, 1); // version
    head.setUint8(9, 1); // channels
    head.setUint32(12, sampleRate, true);
    const tags = new DataView(new ArrayBuffer(16));
    "OpusTags".split("").forEach((letter, i) => tags.setUint8(i, letter.charCodeAt(0)));
    this.headers = [this.page(new Uint8Array(head.buffer), 2), this.page(new Uint8Array(tags.buffer), 0)];
  }

  /** A page of one packet that lasts `samples` at 48 kHz. */
  packet(bytes, samples) {
    this.granule += samples;
    return this.page(bytes, 0);
  }

  page(packet, flags) {
    const laces = Math.floor(packet.length / 255) + 1;
    const page = new Uint8Array(27 + laces + packet.length);
    const view = new DataView(page.buffer);
    "OggS".split("").forEach((letter, i) => view.setUint8(i, letter.charCodeAt(0)));
    view.setUint8(5, flags);
    view.setBigUint64(6, BigInt(this.granule), true);
    view.setUint32(14, this.serial, true);
    view.setUint32(18, this.sequence++, true);
    view.setUint8(26, laces);
    page.fill(255, 27, 27 + laces - 1);
    page[27 + laces - 1] = packet.length % 255;
    page.set(packet, 27 + laces);
    view.setUint32(22, checksum(page), true);
    return page;
  }
}

/** Gives the packets of pages that arrive cut anywhere, without the two headers. */
export class Demuxer {
  constructor() {
    this.rest = new Uint8Array(0);
    this.partial = [];
    this.packets = 0;
  }

  push(bytes) {
    const data = new Uint8Array(this.rest.length + bytes.length);
    data.set(this.rest);
    data.set(bytes, this.rest.length);
    const found = [];
    let at = 0;
    while (data.length - at >= 27) {
      const laces = data[at + 26];
      const start = at + 27 + laces;
      if (data.length < start) break;
      const sizes = data.subarray(at + 27, start);
      const end = start + sizes.reduce((sum, size) => sum + size, 0);
      if (data.length < end) break;
      let from = start;
      for (const size of sizes) {
        this.partial.push(data.slice(from, from + size));
        from += size;
        if (size === 255) continue;
        if (this.packets++ >= 2) found.push(join(this.partial));
        this.partial = [];
      }
      at = end;
    }
    this.rest = data.slice(at);
    return found;
  }
}

function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
