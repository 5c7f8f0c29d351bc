// Reads claims as JSON and prints them signed with RS256 by a key of its own.
import { createSign, generateKeyPairSync } from "node:crypto";
import { readFileSync } from "node:fs";

const part = (value) => Buffer.from(value).toString("base64url");
const claims = readFileSync(0, "utf8");
const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
const signed = `${part(JSON.stringify({ alg: "RS256", typ: "JWT" }))}.${part(claims)}`;
console.log(`${signed}.${createSign("RSA-SHA256").update(signed).sign(privateKey).toString("base64url")}`);
