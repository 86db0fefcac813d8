package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// Longer than any honest answer here, a 200 ms link included: past it something hangs.
const stuckAfter = 10 * time.Second

// endpoint is where a client connects to, and whether it speaks raw or HTTPS there.
type endpoint struct {
	address string
	tls     *tls.Config // nil: raw
	path    string      // prefix of the path (HTTPS)
}

type tlsFiles struct{ ca, certificate, key, serverName string }

func newEndpoint(address, path string, files tlsFiles) (endpoint, error) {
	if err := requireLoopback(address); err != nil {
		return endpoint{}, err
	}
	target := endpoint{address: address, path: path}
	if files.ca == "" {
		return target, nil
	}
	pem, err := os.ReadFile(files.ca)
	if err != nil {
		return endpoint{}, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return endpoint{}, fmt.Errorf("%s holds no certificate", files.ca)
	}
	target.tls = &tls.Config{RootCAs: roots, ServerName: files.serverName, NextProtos: []string{"http/1.1"}}
	if files.certificate != "" {
		pair, err := tls.LoadX509KeyPair(files.certificate, files.key)
		if err != nil {
			return endpoint{}, err
		}
		target.tls.Certificates = []tls.Certificate{pair}
	}
	return target, nil
}

// dial connects, and for HTTPS has shaken hands when it returns.
func (e endpoint) dial() (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", e.address, stuckAfter)
	if err != nil || e.tls == nil {
		return conn, err
	}
	secured := tls.Client(conn, e.tls)
	_ = conn.SetDeadline(time.Now().Add(stuckAfter))
	if err := secured.Handshake(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	return secured, nil
}

// exchanger is a warm stream: each exchange is one request and its whole answer.
type exchanger interface {
	exchange() error
	io.Closer
}

func (e endpoint) open(requestBytes, responseBytes int) (exchanger, error) {
	conn, err := e.dial()
	if err != nil {
		return nil, err
	}
	if e.tls != nil {
		return &httpsExchanger{
			Conn: conn, reader: bufio.NewReaderSize(conn, 32<<10),
			request: e.get(responseBytes, requestBytes), size: int64(responseBytes),
		}, nil
	}
	head := preamble{mode: modeRequest, requestBytes: requestBytes, responseBytes: responseBytes}.encode()
	return &rawExchanger{
		Conn: conn, preambleSize: preambleBytes,
		out: append(head, make([]byte, requestBytes)...), response: make([]byte, responseBytes),
	}, nil
}

// get is a whole GET for `size` bytes, padded to about headBytes (a request as
// kubectl makes it has a few hundred bytes of its own; the rest stands for tokens).
func (e endpoint) get(size, headBytes int) []byte {
	head := fmt.Sprintf("GET %s%s%d HTTP/1.1\r\nHost: %s\r\nUser-Agent: tower-bench/1\r\nAccept: application/json, */*\r\n",
		e.path, benchPath, size, e.address)
	const name = "X-Padding: "
	if padding := headBytes - len(head) - len(name) - len("\r\n\r\n"); padding > 0 {
		head += name + strings.Repeat("p", padding) + "\r\n"
	}
	return []byte(head + "\r\n")
}

type rawExchanger struct {
	net.Conn
	preambleSize int // of what still goes before the request: the first one carries it
	out          []byte
	response     []byte
	sequence     uint64
}

func (r *rawExchanger) exchange() error {
	r.sequence++
	binary.BigEndian.PutUint64(r.out[r.preambleSize:], r.sequence)
	_ = r.SetDeadline(time.Now().Add(stuckAfter))
	if _, err := r.Write(r.out); err != nil {
		return fmt.Errorf("sending a request: %w", err)
	}
	r.out, r.preambleSize = r.out[r.preambleSize:], 0
	if _, err := io.ReadFull(r.Conn, r.response); err != nil {
		return fmt.Errorf("reading a response: %w", err)
	}
	if !bytes.Equal(r.response[:echoBytes], r.out[:echoBytes]) {
		return errors.New("a response does not belong to its request: bytes lost, doubled or on the wrong stream")
	}
	return nil
}

type httpsExchanger struct {
	net.Conn
	reader  *bufio.Reader
	request []byte
	size    int64
}

func (h *httpsExchanger) exchange() error {
	_ = h.SetDeadline(time.Now().Add(stuckAfter))
	if _, err := h.Write(h.request); err != nil {
		return fmt.Errorf("sending a request: %w", err)
	}
	response, err := http.ReadResponse(h.reader, nil)
	if err != nil {
		return fmt.Errorf("reading a response: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 500))
		return fmt.Errorf("status %s: %s", response.Status, said)
	}
	count, err := io.Copy(io.Discard, response.Body)
	if err == nil && count != h.size {
		err = fmt.Errorf("a body of %d bytes instead of %d", count, h.size)
	}
	return err
}

// startDownload asks for bytes without end; the caller reads the connection.
func (e endpoint) startDownload() (net.Conn, error) {
	conn, err := e.dial()
	if err != nil {
		return nil, err
	}
	request := preamble{mode: modeDownload}.encode()
	if e.tls != nil {
		request = e.get(1<<50, 0)
	}
	_, err = conn.Write(request)
	return conn, err
}
