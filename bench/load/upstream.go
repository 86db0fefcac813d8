package main

import (
	"bufio"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
)

const (
	// One write of a bulk source; larger writes gained nothing on loopback.
	bulkChunkBytes = 256 << 10
	// Up to here head and body go out as one write, as a good server does it.
	singleWriteBytes = 64 << 10
	benchPath        = "/bench/"
)

func runUpstream(arguments []string) error {
	flags := flag.NewFlagSet("upstream", flag.ExitOnError)
	raw := flags.String("raw", "127.0.0.1:0", "address of the raw server")
	https := flags.String("https", "127.0.0.1:0", "address of the HTTPS server (the member's apiserver)")
	certificate := flags.String("cert", "", "PEM certificate of the HTTPS server")
	key := flags.String("key", "", "PEM key of the HTTPS server")
	uid := flags.String("uid", "00000000-0000-4000-8000-000000000001", "UID of the member's kube-system namespace")
	_ = flags.Parse(arguments)

	rawListener, err := listenLoopback(*raw)
	if err != nil {
		return err
	}
	addresses := map[string]string{"raw": rawListener.Addr().String()}
	go accept(rawListener, serveRaw)
	if *certificate != "" {
		pair, err := tls.LoadX509KeyPair(*certificate, *key)
		if err != nil {
			return err
		}
		httpsListener, err := listenLoopback(*https)
		if err != nil {
			return err
		}
		addresses["https"] = httpsListener.Addr().String()
		settings := &tls.Config{
			Certificates: []tls.Certificate{pair},
			NextProtos:   []string{"http/1.1"},
			// As a kube-apiserver does: asked for, not demanded.
			ClientAuth: tls.RequestClientCert,
			// Go starts every connection with small records; we measure what follows.
			DynamicRecordSizingDisabled: true,
		}
		go accept(tls.NewListener(httpsListener, settings), func(conn net.Conn) error {
			return serveHTTPS(conn, *uid)
		})
	}
	if err := printJSON(addresses); err != nil {
		return err
	}
	waitForStdin()
	return nil
}

func listenLoopback(address string) (net.Listener, error) {
	if err := requireLoopback(address); err != nil {
		return nil, err
	}
	return net.Listen("tcp", address)
}

func accept(listener net.Listener, serve func(net.Conn) error) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "accept:", err)
			return
		}
		go func() {
			defer conn.Close()
			if err := serve(conn); err != nil && os.Getenv("TOWER_BENCH_DEBUG") != "" {
				fmt.Fprintln(os.Stderr, "serve:", err)
			}
		}()
	}
}

func serveRaw(conn net.Conn) error {
	head := make([]byte, preambleBytes)
	if _, err := io.ReadFull(conn, head); err != nil {
		return err
	}
	wanted, err := parsePreamble(head)
	if err != nil {
		return err
	}
	switch wanted.mode {
	case modeRequest:
		return answerRequests(conn, wanted)
	case modeDownload:
		return writeForever(conn)
	case modeUpload:
		return acknowledgeForever(conn)
	}
	return fmt.Errorf("unknown mode %q", wanted.mode)
}

func answerRequests(conn net.Conn, wanted preamble) error {
	request, response := make([]byte, wanted.requestBytes), make([]byte, wanted.responseBytes)
	for {
		if _, err := io.ReadFull(conn, request); err != nil {
			return err
		}
		copy(response[:echoBytes], request)
		if _, err := conn.Write(response); err != nil {
			return err
		}
	}
}

func writeForever(conn net.Conn) error {
	chunk := make([]byte, bulkChunkBytes)
	for {
		if _, err := conn.Write(chunk); err != nil {
			return err
		}
	}
}

func acknowledgeForever(conn net.Conn) error {
	buffer := make([]byte, bulkChunkBytes)
	unacknowledged := 0
	for {
		count, err := conn.Read(buffer)
		if err != nil {
			return err
		}
		unacknowledged += count
		if acks := unacknowledged / ackBytes; acks > 0 {
			unacknowledged -= acks * ackBytes
			if _, err := conn.Write(buffer[:acks]); err != nil {
				return err
			}
		}
	}
}

// serveHTTPS answers `GET /bench/N` with N bytes, and what an agent's preflight
// asks of a member (member.go). HTTP/1.1, keep-alive; a server of net/http would
// cost more CPU than the tunnel's own share leaves on two cores.
func serveHTTPS(conn net.Conn, uid string) error {
	reader := bufio.NewReaderSize(conn, 16<<10)
	var whole []byte // head and body of the last small answer, reused while the size is the same
	wholeSize := -1
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return err
		}
		size, isBench := benchSize(request.URL.Path)
		switch {
		case !isBench:
			err = answerMember(conn, request, uid)
		case size > singleWriteBytes:
			err = writeLargeBody(conn, size)
		default:
			if wholeSize != size {
				whole = append(responseHead(200, "application/octet-stream", size), make([]byte, size)...)
				wholeSize = size
			}
			_, err = conn.Write(whole)
		}
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, request.Body); err != nil {
			return err
		}
		if request.Close {
			return nil
		}
	}
}

func benchSize(path string) (int, bool) {
	text, isBench := strings.CutPrefix(path, benchPath)
	size, err := strconv.Atoi(text)
	return size, isBench && err == nil && size >= 0
}

func responseHead(status int, contentType string, size int) []byte {
	return []byte(fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n",
		status, http.StatusText(status), contentType, size))
}

func writeLargeBody(conn net.Conn, size int) error {
	if _, err := conn.Write(responseHead(200, "application/octet-stream", size)); err != nil {
		return err
	}
	chunk := make([]byte, bulkChunkBytes)
	for size > 0 {
		count := min(size, len(chunk))
		if _, err := conn.Write(chunk[:count]); err != nil {
			return err
		}
		size -= count
	}
	return nil
}
