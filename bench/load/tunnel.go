package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// A tunnel as SPEC.md says, from the agent's end: enough of it to be an agent that has
// nothing to do but to report. Sessions are not resumed: each connection begins a new one.

// Of SPEC 5.
const (
	frameHello  = 0
	frameOpen   = 1
	frameData   = 2
	frameEOF    = 3
	frameReset  = 4
	framePing   = 6
	framePong   = 7
	frameGoAway = 8
	frameAck    = 10
)

// Of SPEC 8.
const (
	pingAfter   = 2 * time.Second
	answerAfter = 2500 * time.Millisecond // so that it is dead 4.5 s after its last sign
)

const (
	windowBytes     = 256 << 10
	frameHeadBytes  = 9
	controlStream   = 1       // the first of an agent
	maxMessageBytes = 1 << 20 // SPEC 4
	controlWithin   = 10 * time.Second
	controlIdle     = 3 * time.Second // as a real agent
)

// dial is one attempt to get a tunnel.
type dial struct {
	agent     *agent
	began     time.Time
	connected chan struct{} // closed when there is a TCP connection

	mu        sync.Mutex // guards the fields below
	cancel    context.CancelFunc
	conn      net.Conn
	abandoned bool
	opened    *tunnel // what came of it
}

// errRefused is "come back in n s"; not counted as a failure.
var errRefused = errors.New("told to come back later")

// run is the tunnel, ready and with its report sent, or nil.
func (d *dial) run() *tunnel {
	d.agent.fleet.dialled(func(r *round) { r.Dials++ })
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	d.mu.Lock()
	d.cancel = cancel
	d.mu.Unlock()
	opened, err := d.open(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err == nil && !d.abandoned:
		d.opened = opened
		return opened
	case d.abandoned || errors.Is(err, errRefused):
	default:
		d.agent.fleet.failed(err)
	}
	if d.conn != nil {
		d.conn.Close()
	}
	return nil
}

// abandonUnless ends an attempt, and what came of it, unless that is the agent's tunnel now.
func (d *dial) abandonUnless(chosen *tunnel) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.opened == chosen || d.abandoned {
		return
	}
	d.abandoned = true
	if d.cancel != nil {
		d.cancel()
	}
	if d.conn != nil {
		d.conn.Close()
	}
}

func (d *dial) open(ctx context.Context) (*tunnel, error) {
	a := d.agent
	dialer := net.Dialer{LocalAddr: a.source()}
	plain, err := dialer.DialContext(ctx, "tcp", a.fleet.address)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	close(d.connected)
	secured := tls.Client(plain, a.fleet.outer)
	d.mu.Lock()
	d.conn = secured
	d.mu.Unlock()
	deadline, _ := ctx.Deadline()
	_ = secured.SetDeadline(deadline)
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	t := &tunnel{agent: a, conn: secured, reader: bufio.NewReaderSize(secured, 1024)}
	if err := t.upgrade(); err != nil {
		return nil, err
	}
	if err := t.greet(); err != nil {
		return nil, fmt.Errorf("HELLO: %w", err)
	}
	t.readyAfter = time.Since(d.began)
	_ = secured.SetDeadline(time.Now().Add(controlWithin))
	if err := t.report(); err != nil {
		return nil, fmt.Errorf("control stream: %w", err)
	}
	_ = secured.SetDeadline(time.Time{})
	return t, nil
}

// tunnel is a connection whose upgrade is through.
type tunnel struct {
	agent      *agent
	conn       *tls.Conn
	reader     *bufio.Reader
	readyAfter time.Duration
	retryAfter time.Duration // of the server's GOAWAY
	goneAway   bool
	received   uint64 // messages, HELLO not counted
	reported   uint64 // ... and how many of them the server knows of
	pings      uint64
	secured    *tls.Conn    // the control stream's plain text; nil once it is closed
	reportedAt time.Time    // when the report left
	control    bytes.Buffer // ciphertext of the control stream that arrived
	sent       uint64       // bytes of ours on the control stream
}

// upgrade proves who we are, and becomes a WebSocket.
func (t *tunnel) upgrade() error {
	a := t.agent
	assertion, err := makeAssertion(a.key, a.der, a.fleet.audience)
	if err != nil {
		return err
	}
	var nonce [16]byte
	_, _ = rand.Read(nonce[:])
	_, err = fmt.Fprintf(t.conn, "GET /tunnel HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: tower.v1\r\n"+
		"Authorization: Bearer %s\r\n\r\n",
		a.fleet.address, base64.StdEncoding.EncodeToString(nonce[:]), assertion)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	answer, err := http.ReadResponse(t.reader, nil)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	if answer.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	said, _ := io.ReadAll(io.LimitReader(answer.Body, 500))
	if seconds, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil {
		a.fleet.dialled(func(r *round) { r.Refused++ })
		a.asked(time.Duration(seconds) * time.Second)
		return errRefused
	}
	return fmt.Errorf("upgrade: status %s: %s", answer.Status, said)
}

func makeAssertion(key *ecdsa.PrivateKey, der []byte, audience string) (string, error) {
	encode := base64.RawURLEncoding.EncodeToString
	head, _ := json.Marshal(map[string]any{
		"alg": "ES256", "typ": "tower-assertion+jwt", "x5c": []string{base64.StdEncoding.EncodeToString(der)},
	})
	now := time.Now().Unix()
	claims, _ := json.Marshal(map[string]any{"aud": audience, "iat": now, "exp": now + 60, "jti": randomHex()})
	signed := encode(head) + "." + encode(claims)
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signed + "." + encode(signature), nil
}

func randomHex() string {
	var random [16]byte
	_, _ = rand.Read(random[:])
	return hex.EncodeToString(random[:])
}

// greet says HELLO and waits for the server's.
func (t *tunnel) greet() error {
	// The same process: of two dials that came through, neither ends the other.
	place := fmt.Sprintf("simulated-%d", t.agent.index)
	hello, _ := json.Marshal(map[string]any{
		"session_id": randomHex(), "window_bytes": windowBytes, "software": "simulated-agent/1",
		"place": place, "instance": place,
	})
	if err := t.writeMessage(frame(frameHello, 0, hello)); err != nil {
		return err
	}
	message, err := t.readMessage()
	if err == nil && (len(message) < frameHeadBytes || message[0] != frameHello) {
		err = errors.New("the server's first frame is another")
	}
	return err
}

// report opens the control stream, shakes hands inside it, and sends one report.
func (t *tunnel) report() error {
	open := binary.BigEndian.AppendUint64(nil, windowBytes)
	ping := binary.BigEndian.AppendUint64(nil, 0)
	first := append(frame(framePing, 0, ping), frame(frameOpen, controlStream, append(open, "control"...))...)
	if err := t.writeMessage(first); err != nil {
		return err
	}
	secured := tls.Client((*controlConn)(t), t.agent.inner)
	if err := secured.Handshake(); err != nil {
		return err
	}
	_, err := secured.Write([]byte(`{"kind":"report","apiserver_version":"v1.34.0"}` + "\n"))
	t.secured, t.reportedAt = secured, time.Now()
	return err
}

// endReport closes the control stream a while after the report: an agent opens another
// when it has something new to say.
func (t *tunnel) endReport() error {
	if t.secured == nil || time.Since(t.reportedAt) < controlIdle {
		return nil
	}
	if err := t.secured.CloseWrite(); err != nil {
		return err
	}
	t.secured = nil
	return t.send(frame(frameEOF, controlStream, binary.BigEndian.AppendUint64(nil, t.sent)))
}

// controlConn is the control stream's ciphertext as a net.Conn, for one goroutine, while
// nobody else reads the tunnel.
type controlConn tunnel

func (c *controlConn) Read(into []byte) (int, error) {
	t := (*tunnel)(c)
	for t.control.Len() == 0 {
		message, err := t.readMessage()
		if err != nil {
			return 0, err
		}
		if err := t.receive(message); err != nil {
			return 0, err
		}
	}
	return t.control.Read(into)
}

func (c *controlConn) Write(data []byte) (int, error) {
	t := (*tunnel)(c)
	payload := append(binary.BigEndian.AppendUint64(nil, t.sent), data...)
	t.sent += uint64(len(data))
	return len(data), t.send(frame(frameData, controlStream, payload))
}

func (c *controlConn) Close() error                     { return nil }
func (c *controlConn) LocalAddr() net.Addr              { return c.conn.LocalAddr() }
func (c *controlConn) RemoteAddr() net.Addr             { return c.conn.RemoteAddr() }
func (c *controlConn) SetDeadline(time.Time) error      { return nil } // the tunnel's own holds
func (c *controlConn) SetReadDeadline(time.Time) error  { return nil }
func (c *controlConn) SetWriteDeadline(time.Time) error { return nil }

// serve answers the server until the connection ends; whether it had said GOAWAY.
func (t *tunnel) serve() bool {
	defer t.conn.Close()
	asked := false // a PING of ours is under way
	for {
		wait := pingAfter
		if asked {
			wait = answerAfter
		}
		_ = t.conn.SetReadDeadline(time.Now().Add(wait))
		// A deadline can only pass between messages here, or the peer is dead anyway.
		_, err := t.reader.Peek(1)
		var silent net.Error
		if errors.As(err, &silent) && silent.Timeout() && !asked {
			t.pings++
			asked = true
			err = t.send(frame(framePing, 0, binary.BigEndian.AppendUint64(nil, t.pings)))
			if err == nil {
				err = t.endReport()
			}
			if err == nil {
				continue
			}
		}
		if err != nil {
			return t.goneAway
		}
		asked = false
		message, err := t.readMessage()
		if err == nil {
			err = t.receive(message)
		}
		if err != nil || t.goneAway {
			return t.goneAway
		}
	}
}

// receive deals with one message of the server's.
func (t *tunnel) receive(message []byte) error {
	t.received++
	for len(message) >= frameHeadBytes {
		kind, stream := message[0], binary.BigEndian.Uint32(message[1:])
		end := frameHeadBytes + int(binary.BigEndian.Uint32(message[5:]))
		if end > len(message) {
			return errors.New("a frame is longer than its message")
		}
		payload := message[frameHeadBytes:end]
		message = message[end:]
		if err := t.receiveFrame(kind, stream, payload); err != nil {
			return err
		}
	}
	return nil
}

func (t *tunnel) receiveFrame(kind byte, stream uint32, payload []byte) error {
	switch {
	case kind == framePing:
		return t.send(frame(framePong, 0, payload))
	case kind == frameGoAway && len(payload) >= 6:
		t.goneAway = true
		t.retryAfter = time.Duration(binary.BigEndian.Uint32(payload[2:])) * time.Millisecond
	case kind == frameData && stream == controlStream && len(payload) >= 8:
		t.control.Write(payload[8:])
	case kind == frameReset && stream == controlStream:
		return fmt.Errorf("the server reset the control stream: %s", payload[min(2, len(payload)):])
	case kind == frameOpen:
		// An agent whose member has nothing.
		return t.send(frame(frameReset, stream, append([]byte{0, 4}, "a simulated agent has no targets"...)))
	}
	return nil
}

// send writes one message, with what we have received in front of it.
func (t *tunnel) send(frames []byte) error {
	if t.reported != t.received {
		t.reported = t.received
		ack := frame(frameAck, 0, binary.BigEndian.AppendUint64(nil, t.received))
		frames = append(ack, frames...)
	}
	return t.writeMessage(frames)
}

func frame(kind byte, stream uint32, payload []byte) []byte {
	head := make([]byte, frameHeadBytes, frameHeadBytes+len(payload))
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], stream)
	binary.BigEndian.PutUint32(head[5:], uint32(len(payload)))
	return append(head, payload...)
}

// The WebSocket, RFC 6455: a client's frames are masked.

func (t *tunnel) writeMessage(message []byte) error {
	const final, binaryMessage, masked = 0x80, 2, 0x80
	head := []byte{final | binaryMessage, 0}
	if len(message) < 126 {
		head[1] = masked | byte(len(message))
	} else {
		head[1] = masked | 126 // ours are short
		head = binary.BigEndian.AppendUint16(head, uint16(len(message)))
	}
	var mask [4]byte
	_, _ = rand.Read(mask[:])
	out := append(head, mask[:]...)
	for i, each := range message {
		out = append(out, each^mask[i%4])
	}
	_, err := t.conn.Write(out)
	return err
}

func (t *tunnel) readMessage() ([]byte, error) {
	for {
		opcode, payload, err := t.readWebSocketFrame()
		if err != nil {
			return nil, err
		}
		if opcode == 2 {
			return payload, nil
		}
		if opcode == 8 {
			return nil, errors.New("the server closed the WebSocket")
		}
	}
}

func (t *tunnel) readWebSocketFrame() (byte, []byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(t.reader, head[:]); err != nil {
		return 0, nil, err
	}
	size := uint64(head[1] & 0x7f)
	if extended := map[uint64]int{126: 2, 127: 8}[size]; extended > 0 {
		var wide [8]byte
		if _, err := io.ReadFull(t.reader, wide[8-extended:]); err != nil {
			return 0, nil, err
		}
		size = binary.BigEndian.Uint64(wide[:])
	}
	if size > maxMessageBytes {
		return 0, nil, fmt.Errorf("a message of %d bytes", size)
	}
	payload := make([]byte, size)
	_, err := io.ReadFull(t.reader, payload)
	return head[0] & 0x0f, payload, err
}
