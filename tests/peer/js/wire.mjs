// Cards, sessions and frames of veilmesh, written anew from docs/wire.md. Names in capitals are those of that page.

import {
  createCipheriv, createDecipheriv, createHash, createHmac, createPrivateKey, createPublicKey, diffieHellman,
  hkdfSync, randomBytes, sign, verify
} from 'node:crypto'

const EPOCH_FRAMES = 16
const HEADER = 115
const HELLO = 80
const TAG = 16
const SIGNATURE = 64
const NONE = Buffer.alloc(8)

const ascii = (text) => Buffer.from(text, 'latin1')
const join = (...parts) => Buffer.concat(parts.map((part) => Buffer.from(part)))
const number = (value, bytes) => {
  const written = Buffer.alloc(12)
  written.writeBigUInt64BE(BigInt(value), 4)
  return written.subarray(12 - bytes)
}
const hmac = (key, text) => createHmac('sha256', key).update(text).digest()

// --- keys

const OF = { Ed25519: '70', X25519: '6e' } // the last byte of the object identifier 1.3.101.x

export function privateKey (curve, seed) {
  const der = join(Buffer.from(`302e020100300506032b65${OF[curve]}04220420`, 'hex'), seed)
  return createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })
}

export const raw = (key) => Buffer.from(createPublicKey(key).export({ format: 'jwk' }).x, 'base64url')

const publicKey = (crv, x) =>
  createPublicKey({ key: { kty: 'OKP', crv, x: Buffer.from(x).toString('base64url') }, format: 'jwk' })

const agree = (own, theirs) => diffieHellman({ privateKey: own, publicKey: publicKey('X25519', theirs) })

const signed = (who, signature, text) => verify(null, text, publicKey('Ed25519', who), signature)

// --- cards

const CARD = 93 // up to the address

export function writeCard ({ identity, sealing, run, address, serial }) {
  const text = join(ascii('VC\x01'), run, raw(identity), raw(sealing), number(serial, 8), number(address.length, 2),
    ascii(address))
  return join(text, sign(null, join(ascii('veilmesh card v1\0'), text), identity))
}

export function readCard (card) {
  const end = CARD + card.readUInt16BE(CARD - 2)
  const identity = card.subarray(19, 51)
  if (!signed(identity, card.subarray(end), join(ascii('veilmesh card v1\0'), card.subarray(0, end)))) {
    throw new Error('a card that its peer has not signed')
  }
  const address = card.toString('latin1', CARD, end)
  return { run: card.subarray(3, 19), identity, sealing: card.subarray(51, 83), address }
}

// --- HPKE (RFC 9180), base mode, one message: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM

const KEM = join(ascii('KEM'), number(0x20, 2))
const SUITE = join(ascii('HPKE'), number(0x20, 2), number(1, 2), number(2, 2))

const extract = (suite, salt, label, text) => hmac(salt, join(ascii('HPKE-v1'), suite, ascii(label), text))
const expand = (suite, key, label, info, bytes) => // never more than one block here
  hmac(key, join(number(bytes, 2), ascii('HPKE-v1'), suite, ascii(label), info, [1])).subarray(0, bytes)

function sealedTo (secret, enc, receiver, info) {
  const shared = expand(KEM, extract(KEM, '', 'eae_prk', secret), 'shared_secret', join(enc, receiver), 32)
  const context = join([0], extract(SUITE, '', 'psk_id_hash', ''), extract(SUITE, '', 'info_hash', info))
  const key = extract(SUITE, shared, 'secret', '')
  return [expand(SUITE, key, 'key', context, 32), expand(SUITE, key, 'base_nonce', context, 12)]
}

function encrypt (key, nonce, text, bound) {
  const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(bound)
  return join(cipher.update(text), cipher.final(), cipher.getAuthTag())
}

function decrypt (key, nonce, text, bound) {
  const cipher = createDecipheriv('aes-256-gcm', key, nonce).setAAD(bound).setAuthTag(text.subarray(-TAG))
  return join(cipher.update(text.subarray(0, -TAG)), cipher.final())
}

// --- sessions

class Chain {
  #keys = []
  #next

  constructor (run, info, secrets) {
    this.#next = Buffer.from(hkdfSync('sha256', secrets, run, info, 32))
  }

  key (sequence) { // a test keeps what the page says to delete
    while (this.#keys.length <= Math.floor(sequence / EPOCH_FRAMES)) {
      this.#keys.push(hmac(this.#next, 'veilmesh ratchet v1 seal\0'))
      this.#next = hmac(this.#next, 'veilmesh ratchet v1 next\0')
    }
    return this.#keys[Math.floor(sequence / EPOCH_FRAMES)]
  }
}

const label = (name) => ascii(`veilmesh session v2 ${name}\0`)

// What one peer says to one other, and hears from it.
export class Contact {
  #id = randomBytes(8)
  #share = privateKey('X25519', randomBytes(32))
  #sequence = 0
  #taken = new Set()
  #acknowledged = false
  #theirs = null // their session: id, share, and the chain it is written under alone
  #joint = null // the two chains once both sessions are joined: to write under, and to read

  constructor (identity, sealing, card) {
    Object.assign(this, { identity, sealing, card, run: card.run })
    this.shared = agree(sealing, card.sealing)
    const [me, them] = [[raw(identity), raw(sealing)], [card.identity, card.sealing]]
    this.out = join(this.run, me[0], them[0], me[1], them[1])
    this.back = join(this.run, them[0], me[0], them[1], me[1])
    const [ephemeral, secret] = [privateKey('X25519', randomBytes(32)), raw(this.#share)]
    const [key, nonce] = sealedTo(agree(ephemeral, card.sealing), raw(ephemeral), card.sealing,
      join(label('hello'), this.out, this.#id))
    this.hello = join(raw(ephemeral), encrypt(key, nonce, secret, ''))
    this.alone = new Chain(this.run, join(label('key'), this.out, this.#id), join(secret, this.shared))
  }

  seal (kind, body) {
    const [sequence, hello] = [this.#sequence++, this.#acknowledged ? Buffer.alloc(0) : this.hello]
    const header = join(ascii('VM\x02'), [kind, hello.length ? 1 : 0], this.run, raw(this.identity),
      this.card.identity, this.#id, this.#joint ? this.#theirs.id : NONE, number(sequence, 8), number(hello.length, 2),
      number(body.length + TAG, 4), hello)
    const chain = this.#joint ? this.#joint.out : this.alone
    const text = join(header, encrypt(chain.key(sequence), number(sequence, 12), body, header))
    return join(text, sign(null, frameDigest(text), this.identity))
  }

  open (frame) {
    const [kind, flags, hello] = [frame[3], frame[4], frame.readUInt16BE(109)]
    const [session, ack] = [frame.subarray(85, 93), frame.subarray(93, 101)]
    const sequence = Number(frame.readBigUInt64BE(101))
    const [from, to] = [HEADER + hello, frame.length - SIGNATURE]
    if (frame.toString('latin1', 0, 3) !== 'VM\x02' || flags & ~3 || hello !== (flags & 1 ? HELLO : 0) ||
        to - from !== frame.readUInt32BE(111) || !frame.subarray(5, 21).equals(this.run) ||
        !frame.subarray(21, 53).equals(this.card.identity) || !frame.subarray(53, 85).equals(raw(this.identity))) {
      throw new Error('not a frame for this peer')
    }
    if (!signed(this.card.identity, frame.subarray(to), frameDigest(frame.subarray(0, to)))) {
      throw new Error('not signed')
    }
    this.#theirs ??= this.#accept(session, frame.subarray(HEADER, from))
    if (!session.equals(this.#theirs.id) || this.#taken.has(sequence)) throw new Error('of another session, or twice')
    const joint = !ack.equals(NONE)
    if (joint && !ack.equals(this.#id)) throw new Error('an acknowledgement of what was never said')
    const chain = joint ? this.#joint.back : this.#theirs.alone
    const body = decrypt(chain.key(sequence), number(sequence, 12), frame.subarray(from, to), frame.subarray(0, from))
    this.#taken.add(sequence)
    this.#acknowledged ||= joint
    return { kind, joint, body: flags & 2 ? body.subarray(0, body.lastIndexOf(0x80)) : body }
  }

  #accept (id, hello) {
    const enc = hello.subarray(0, 32)
    const [key, nonce] = sealedTo(agree(this.sealing, enc), enc, raw(this.sealing), join(label('hello'), this.back, id))
    const share = decrypt(key, nonce, hello.subarray(32), '')
    const [both, ours] = [agree(this.#share, share), raw(this.#share)]
    this.#joint = {
      out: new Chain(this.run, join(label('joint'), this.out, this.#id, id), join(both, ours, share, this.shared)),
      back: new Chain(this.run, join(label('joint'), this.back, id, this.#id), join(both, share, ours, this.shared))
    }
    const alone = new Chain(this.run, join(label('key'), this.back, id), join(share, this.shared))
    return { id: Buffer.from(id), alone }
  }
}

const frameDigest = (text) => join(ascii('veilmesh frame v1\0'), createHash('sha256').update(text).digest())

// --- messages: msgpack, as far as an `update` needs it

export const writeUpdate = (round, samples, blob) => join([0x94, 0xa6], ascii('update'), [0xce], number(round, 4),
  [0xce], number(samples, 4), [0xc6], number(blob.length, 4), blob)

export function readMessage (body) {
  let at = 0
  const take = (bytes) => body.subarray(at, (at += bytes))
  const length = (bytes) => take(bytes).readUIntBE(0, bytes)
  const value = () => {
    const code = length(1)
    if (code < 0x80) return code
    if (code >> 4 === 9) return Array.from({ length: code & 15 }, value)
    if (code >> 5 === 5) return take(code & 31).toString()
    if (code >= 0xcc && code <= 0xce) return length(1 << (code - 0xcc))
    if (code >= 0xc4 && code <= 0xc6) return take(length(1 << (code - 0xc4)))
    throw new Error(`a msgpack code that no update has: ${code}`)
  }
  const message = value()
  if (at !== body.length) throw new Error('more than one message')
  return message
}
