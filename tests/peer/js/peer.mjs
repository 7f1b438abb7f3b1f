// One member of a gossip of two, over js-libp2p: dials the other, asks it who it is and whether it is there, and takes
// part in every round. One line of JSON is read, {address, card, greets}; lines of JSON are written.

import { createHash, randomBytes } from 'node:crypto'
import { createInterface } from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { generateKeyPairFromSeed } from '@libp2p/crypto/keys'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { Contact, privateKey, raw, readCard, readMessage, writeCard, writeUpdate } from './wire.mjs'

// The libraries are written for a later Node than some machines have.
Promise.withResolvers ??= () => {
  const made = {}
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }))
  return made
}
const { createLibp2p } = await import('libp2p')

const FRAMES = '/veilmesh/frames/1'
const [DATA, PRESENCE, GOODBYE] = [1, 2, 3]
const [NOT_YET, HEARD] = [Buffer.from([0]), Buffer.from([1])]
const DENSE = 1

const say = (what) => process.stdout.write(JSON.stringify(what) + '\n')
const told = JSON.parse(await new Promise((resolve) => createInterface({ input: process.stdin }).once('line', resolve)))

// --- who this is

const seed = randomBytes(32)
const [identity, sealing] = [privateKey('Ed25519', seed), privateKey('X25519', randomBytes(32))]
const node = await createLibp2p({
  privateKey: await generateKeyPairFromSeed('Ed25519', seed),
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), ping: ping() }
})
const theirs = readCard(Buffer.from(told.card, 'hex'))
const contact = new Contact(identity, sealing, theirs)

// --- frames in

const arrived = []
let wake = () => {}
await node.handle(FRAMES, async (stream) => {
  let held = Buffer.alloc(0)
  for await (const chunk of stream) {
    held = Buffer.concat([held, chunk.subarray()])
    while (held.length >= 4 && held.length >= 4 + held.readUInt32BE(0)) {
      const end = 4 + held.readUInt32BE(0)
      arrived.push(contact.open(Buffer.from(held.subarray(4, end))))
      held = held.subarray(end)
      wake()
    }
  }
})

async function next () {
  while (arrived.length === 0) await new Promise((resolve) => { wake = resolve })
  return arrived.shift()
}

// --- dial, identify, ping

const there = multiaddr(told.address)
const identified = new Promise((resolve) => node.addEventListener('peer:identify', resolve, { once: true }))
const connection = await node.dial(there) // which asks by itself
if (told.greets) { // or it answers neither, as peers do unless they are told to
  const said = (await identified).detail
  say({
    identified: {
      agent: said.agentVersion, protocols: said.protocols, addresses: said.listenAddrs.map(String),
      peer: said.peerId.toString(), key: Buffer.from(connection.remotePeer.publicKey.raw).toString('hex')
    }
  })
  say({ ping: await node.services.ping.ping(there) })
}
const address = node.getMultiaddrs()[0].toString()
say({
  card: writeCard({ identity, sealing, run: theirs.run, address, serial: Date.now() }).toString('hex'),
  peer: node.peerId.toString(), identity: raw(identity).toString('hex')
})

// --- frames out

const frames = await connection.newStream(FRAMES)
function carry (frame) {
  const size = Buffer.alloc(4)
  size.writeUInt32BE(frame.length)
  frames.send(Buffer.concat([size, frame]))
}
const send = (kind, body) => carry(contact.seal(kind, body))
const beat = setInterval(() => send(PRESENCE, HEARD), 1000)

// --- rounds: an update is the difference from what was said before, and here any will do

function update (round, dimension) {
  const values = Float32Array.from({ length: dimension }, (_, i) => ((i + round) % 7 - 3) / 1024)
  return Buffer.concat([Buffer.from([DENSE]), Buffer.from(values.buffer)])
}

async function takePart () {
  let round = 0
  const ill = contact.seal(PRESENCE, HEARD)
  ill[ill.length - 70] ^= 1
  carry(ill) // what is altered on the way is refused, and harms nothing
  send(PRESENCE, NOT_YET)
  while (true) {
    const { kind, joint, body } = await next()
    if (kind === PRESENCE) {
      if (body.equals(NOT_YET)) send(PRESENCE, HEARD)
    } else if (kind === GOODBYE) {
      send(GOODBYE, Buffer.alloc(0))
      say({ goodbye: true, rounds: round, joint })
      return
    } else if (kind === DATA) {
      const [tag, of, samples, blob] = readMessage(body)
      if (tag !== 'update' || of !== round || blob[0] !== DENSE) throw new Error(`${tag} of ${of} in round ${round}`)
      const mine = update(round, (blob.length - 1) / 4)
      say({
        round, samples, joint, heard: createHash('sha256').update(blob).digest('hex'),
        said: createHash('sha256').update(mine).digest('hex')
      })
      send(DATA, writeUpdate(round, 5, mine))
      round += 1
    }
  }
}

await takePart()
clearInterval(beat)
await frames.close()
await node.stop()
process.exit(0)
