package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A relay is a link: bytes leave it one delay after they came in, not faster than
// its rate, and with a full queue it stops reading, so that TCP pushes back.
//
// Rate and queue belong to one direction of the link and are shared by all of its
// connections, as on a wire. The queue is what waits for the wire; bytes already
// under way (rate x delay) are not in it.

const (
	// Of "unlimited": what one direction of one connection may hold before it stops
	// reading. Above every window in use; only keeps the machine from swapping.
	memoryGuardBytes = 512 << 20
	// With a rate the chunk is the grain of taking turns: 1.3 ms at 100 Mbit/s.
	shapedChunkBytes = 16 << 10
)

type linkOptions struct {
	delay             time.Duration // one way
	bytesPerSecond    float64       // 0: no limit
	queueBytes        int           // 0: no limit; counts only with a rate
	socketBufferBytes int           // 0: the kernel's choice
}

func runRelay(arguments []string) error {
	flags := flag.NewFlagSet("relay", flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:0", "address to accept on")
	to := flags.String("to", "", "address to connect to")
	roundTrip := flags.Float64("rtt-ms", 0, "round trip in milliseconds")
	rate := flags.Float64("rate-mbit", 0, "rate of each direction in Mbit/s; 0: no limit")
	queue := flags.Int("queue-bytes", 0, "bytes that may wait for the wire; 0: no limit")
	buffers := flags.Int("socket-buffer-bytes", 0, "SO_RCVBUF and SO_SNDBUF of the relay's sockets; 0: the kernel's choice")
	_ = flags.Parse(arguments)
	for _, address := range []string{*listen, *to} {
		if err := requireLoopback(address); err != nil {
			return err
		}
	}
	options := linkOptions{
		delay:          time.Duration(*roundTrip * float64(time.Millisecond) / 2),
		bytesPerSecond: *rate * 1e6 / 8, queueBytes: *queue, socketBufferBytes: *buffers,
	}
	settings := net.ListenConfig{Control: options.setBuffers}
	listener, err := settings.Listen(context.Background(), "tcp", *listen)
	if err != nil {
		return err
	}
	there, back := &wire{options: options}, &wire{options: options}
	go accept(listener, func(near net.Conn) error {
		dialer := net.Dialer{Timeout: stuckAfter, Control: options.setBuffers}
		far, err := dialer.Dial("tcp", *to)
		if err != nil {
			return err
		}
		defer far.Close()
		carry(near.(*net.TCPConn), far.(*net.TCPConn), there, back)
		return nil
	})
	if err := printJSON(map[string]string{"relay": listener.Addr().String()}); err != nil {
		return err
	}
	waitForStdin()
	return nil
}

// setBuffers acts before listen and connect: only then the kernel's window follows.
func (o linkOptions) setBuffers(_, _ string, raw syscall.RawConn) error {
	if o.socketBufferBytes == 0 {
		return nil
	}
	var failure error
	err := raw.Control(func(fd uintptr) {
		for _, option := range []int{syscall.SO_RCVBUF, syscall.SO_SNDBUF} {
			if e := syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, option, o.socketBufferBytes); e != nil {
				failure = e
			}
		}
	})
	if err != nil {
		return err
	}
	return failure
}

func carry(near, far *net.TCPConn, there, back *wire) {
	var group sync.WaitGroup
	for _, way := range []struct {
		from, to *net.TCPConn
		wire     *wire
	}{{near, far, there}, {far, near, back}} {
		group.Add(1)
		go func(from, to *net.TCPConn, on *wire) {
			defer group.Done()
			if err := newPipe(on, from, to).run(); err != nil {
				if os.Getenv("TOWER_BENCH_DEBUG") != "" {
					fmt.Fprintln(os.Stderr, "relay:", err)
				}
				from.Close()
				to.Close()
			}
		}(way.from, way.to, way.wire)
	}
	group.Wait()
}

// wire is one direction of the link: what it is asked to carry leaves in order.
type wire struct {
	options linkOptions
	mu      sync.Mutex
	free    time.Time // when the last accepted byte has left
}

// accept returns when `count` bytes will have arrived at the far end. It waits
// first while the queue has no room for them.
func (w *wire) accept(count int) time.Time {
	if w.options.bytesPerSecond == 0 {
		return time.Now().Add(w.options.delay)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); w.free.Before(now) {
		w.free = now
	}
	if w.options.queueBytes > 0 {
		room := max(0, w.options.queueBytes-count)
		time.Sleep(time.Until(w.free) - w.takes(room))
	}
	w.free = w.free.Add(w.takes(count))
	return w.free.Add(w.options.delay)
}

func (w *wire) takes(count int) time.Duration {
	return time.Duration(float64(count) / w.options.bytesPerSecond * float64(time.Second))
}
