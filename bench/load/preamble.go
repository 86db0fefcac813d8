package main

import (
	"encoding/binary"
	"fmt"
)

// The raw protocol: a client says once what it wants, in 16 bytes, and the stream
// does that until it ends. One port serves every raw workload, so one target of
// the agent (and one prototype) is enough.
//
//	0  1B mode      'R' request/response, 'D' download, 'U' upload
//	1  3B "TWB"     a stray client is refused instead of being fed
//	4  4B request   bytes of one request (R)
//	8  8B response  bytes of one response (R)
//
// R: the first echoBytes of a response repeat those of its request, so that a
// response on the wrong stream, or out of order, is an error and not a number.
// U: the server answers one byte for each ackBytes that it has received.
const (
	preambleBytes = 16
	modeRequest   = 'R'
	modeDownload  = 'D'
	modeUpload    = 'U'
	magic         = "TWB"
	echoBytes     = 8
	ackBytes      = 1 << 20

	// Larger than any workload; a wrong preamble must not allocate gigabytes.
	maxExchangeBytes = 16 << 20
)

type preamble struct {
	mode          byte
	requestBytes  int
	responseBytes int
}

func (p preamble) encode() []byte {
	out := make([]byte, preambleBytes)
	out[0] = p.mode
	copy(out[1:], magic)
	binary.BigEndian.PutUint32(out[4:], uint32(p.requestBytes))
	binary.BigEndian.PutUint64(out[8:], uint64(p.responseBytes))
	return out
}

func parsePreamble(data []byte) (preamble, error) {
	if string(data[1:4]) != magic {
		return preamble{}, fmt.Errorf("not a bench client: preamble %x", data)
	}
	request, response := binary.BigEndian.Uint32(data[4:]), binary.BigEndian.Uint64(data[8:])
	p := preamble{mode: data[0]}
	if p.mode != modeRequest {
		return p, nil
	}
	if request < echoBytes || response < echoBytes || request > maxExchangeBytes || response > maxExchangeBytes {
		return preamble{}, fmt.Errorf("request of %d and response of %d bytes: each must be %d to %d",
			request, response, echoBytes, maxExchangeBytes)
	}
	p.requestBytes, p.responseBytes = int(request), int(response)
	return p, nil
}
