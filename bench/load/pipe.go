package main

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// pipe is one direction of one connection through the relay: a reader that stamps
// each chunk with its arrival, and a writer that lets it out at that time.
type pipe struct {
	wire     *wire
	from, to *net.TCPConn
	buffers  sync.Pool

	mu      sync.Mutex // guards the fields below
	changed *sync.Cond
	chunks  []chunk
	held    int   // bytes in chunks
	failure error // of the writer; the reader then gives up
}

type chunk struct {
	due  time.Time
	data []byte
	last bool // the sender half-closed behind this
}

func newPipe(on *wire, from, to *net.TCPConn) *pipe {
	size := bulkChunkBytes
	if on.options.bytesPerSecond > 0 {
		size = shapedChunkBytes
	}
	p := &pipe{wire: on, from: from, to: to}
	p.buffers.New = func() any { buffer := make([]byte, size); return &buffer }
	p.changed = sync.NewCond(&p.mu)
	return p
}

// run ends when the half-close has been handed on, or with the first error.
func (p *pipe) run() error {
	written := make(chan error, 1)
	go func() { written <- p.write() }()
	if err := p.read(); err != nil {
		p.put(chunk{due: time.Now(), last: true})
		<-written
		return err
	}
	return <-written
}

func (p *pipe) read() error {
	for {
		buffer := *p.buffers.Get().(*[]byte)
		count, err := p.from.Read(buffer)
		if count > 0 {
			if failed := p.put(chunk{due: p.wire.accept(count), data: buffer[:count]}); failed != nil {
				return failed
			}
		}
		if errors.Is(err, io.EOF) {
			return p.put(chunk{due: time.Now().Add(p.wire.options.delay), last: true})
		}
		if err != nil {
			return err
		}
	}
}

func (p *pipe) put(next chunk) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.held > memoryGuardBytes && p.failure == nil {
		p.changed.Wait()
	}
	p.chunks = append(p.chunks, next)
	p.held += len(next.data)
	p.changed.Broadcast()
	return p.failure
}

func (p *pipe) take() chunk {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.chunks) == 0 {
		p.changed.Wait()
	}
	next := p.chunks[0]
	p.chunks = p.chunks[1:]
	p.held -= len(next.data)
	p.changed.Broadcast()
	return next
}

func (p *pipe) write() error {
	for {
		next := p.take()
		time.Sleep(time.Until(next.due))
		if next.last {
			return p.to.CloseWrite()
		}
		if _, err := p.to.Write(next.data); err != nil {
			p.mu.Lock()
			p.failure = err
			p.changed.Broadcast()
			p.mu.Unlock()
			// Wakes a reader that waits for bytes nobody can deliver any more.
			p.from.Close()
			return err
		}
		buffer := next.data[:cap(next.data)]
		p.buffers.Put(&buffer)
	}
}
