// MessagePack, as much of it as the server and this page send each other.

const texts = new TextDecoder();
const bytesOf = new TextEncoder();

/** A map of strings, numbers and Float32Arrays as bytes. */
export function encode(message) {
  const parts = [];
  write(message, parts);
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function write(value, parts) {
  if (value instanceof Float32Array) {
    const cells = new DataView(new ArrayBuffer(5 + 5 * value.length));
    cells.setUint8(0, 0xdd);
    cells.setUint32(1, value.length);
    for (let i = 0; i < value.length; i++) {
      cells.setUint8(5 + 5 * i, 0xca);
      cells.setFloat32(6 + 5 * i, value[i]);
    }
    parts.push(new Uint8Array(cells.buffer));
  } else if (typeof value === "string") {
    const bytes = bytesOf.encode(value);
    const head = new DataView(new ArrayBuffer(5));
    head.setUint8(0, 0xdb);
    head.setUint32(1, bytes.length);
    parts.push(new Uint8Array(head.buffer), bytes);
  } else if (Number.isInteger(value) && value >= 0 && value < 2 ** 32) {
    const cell = new DataView(new ArrayBuffer(5));
    cell.setUint8(0, 0xce);
    cell.setUint32(1, value);
    parts.push(new Uint8Array(cell.buffer));
  } else {
    const entries = Object.entries(value);
    parts.push(new Uint8Array([0x80 | entries.length]));
    for (const [key, item] of entries) {
      write(key, parts);
      write(item, parts);
    }
  }
}

/** One message of the server. Throws on what is not MessagePack. */
export function decode(buffer) {
  const reader = { view: new DataView(buffer), at: 0 };
  return read(reader);
}

function read(reader) {
  const { view } = reader;
  const tag = view.getUint8(reader.at++);
  if (tag < 0x80) return tag;
  if (tag >= 0xe0) return tag - 256;
  if (tag < 0x90) return map(reader, tag & 15);
  if (tag < 0xa0) return list(reader, tag & 15);
  if (tag < 0xc0) return text(reader, tag & 31);
  switch (tag) {
    case 0xc0: return null;
    case 0xc2: return false;
    case 0xc3: return true;
    case 0xc4: return bytes(reader, number(reader, 1, "getUint8"));
    case 0xc5: return bytes(reader, number(reader, 2, "getUint16"));
    case 0xc6: return bytes(reader, number(reader, 4, "getUint32"));
    case 0xca: return number(reader, 4, "getFloat32");
    case 0xcb: return number(reader, 8, "getFloat64");
    case 0xcc: return number(reader, 1, "getUint8");
    case 0xcd: return number(reader, 2, "getUint16");
    case 0xce: return number(reader, 4, "getUint32");
    case 0xcf: return Number(number(reader, 8, "getBigUint64"));
    case 0xd0: return number(reader, 1, "getInt8");
    case 0xd1: return number(reader, 2, "getInt16");
    case 0xd2: return number(reader, 4, "getInt32");
    case 0xd3: return Number(number(reader, 8, "getBigInt64"));
    case 0xd9: return text(reader, number(reader, 1, "getUint8"));
    case 0xda: return text(reader, number(reader, 2, "getUint16"));
    case 0xdb: return text(reader, number(reader, 4, "getUint32"));
    case 0xdc: return list(reader, number(reader, 2, "getUint16"));
    case 0xdd: return list(reader, number(reader, 4, "getUint32"));
    case 0xde: return map(reader, number(reader, 2, "getUint16"));
    case 0xdf: return map(reader, number(reader, 4, "getUint32"));
    default: throw new Error(`MessagePack tag ${tag} is not known here`);
  }
}

function number(reader, size, method) {
  const value = reader.view[method](reader.at);
  reader.at += size;
  return value;
}

function bytes(reader, length) {
  const part = new Uint8Array(reader.view.buffer, reader.at, length);
  reader.at += length;
  return part;
}

function text(reader, length) {
  return texts.decode(bytes(reader, length));
}

function list(reader, length) {
  return Array.from({ length }, () => read(reader));
}

function map(reader, length) {
  const entries = {};
  for (let i = 0; i < length; i++) {
    const key = read(reader);
    entries[key] = read(reader);
  }
  return entries;
}
