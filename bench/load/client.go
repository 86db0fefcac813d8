package main

import (
	"flag"
	"fmt"
	"net"
	"sync"
	"time"
)

// clientOptions are the flags of `load client`.
type clientOptions struct {
	workload                    string
	workers                     int
	requestBytes, responseBytes int
	warmup, measured            time.Duration
	target                      endpoint
}

func runClient(arguments []string) error {
	flags := flag.NewFlagSet("client", flag.ExitOnError)
	workload := flags.String("workload", "request", "request, connect, download, upload, beside or hold")
	address := flags.String("address", "", "HOST:PORT to connect to")
	workers := flags.Int("workers", 1, "streams at a time (beside: downloads beside the one request stream)")
	requestBytes := flags.Int("request-bytes", 1024, "bytes of a request")
	responseBytes := flags.Int("response-bytes", 8192, "bytes of a response")
	warmup := flags.Float64("warmup", 0.4, "seconds before the measured window")
	seconds := flags.Float64("seconds", 1.5, "seconds of the measured window")
	path := flags.String("path", "", "prefix of the path (HTTPS)")
	var files tlsFiles
	flags.StringVar(&files.ca, "ca", "", "PEM file of the CA; given: HTTPS, else raw")
	flags.StringVar(&files.certificate, "cert", "", "PEM file of the client certificate")
	flags.StringVar(&files.key, "key", "", "PEM file of the client key")
	flags.StringVar(&files.serverName, "server-name", "", "name that the server must prove (SNI)")
	_ = flags.Parse(arguments)

	target, err := newEndpoint(*address, *path, files)
	if err != nil {
		return err
	}
	options := clientOptions{
		workload: *workload, workers: *workers, requestBytes: *requestBytes, responseBytes: *responseBytes,
		warmup: inSeconds(*warmup), measured: inSeconds(*seconds), target: target,
	}
	workloads := map[string]func(clientOptions) (report, error){
		"request": measureRequests, "connect": measureConnects, "download": measureDownloads,
		"upload": measureUploads, "beside": measureBeside,
	}
	if options.workload == "hold" {
		return holdStreams(options)
	}
	measure, known := workloads[options.workload]
	if !known {
		return fmt.Errorf("unknown workload %q", options.workload)
	}
	result, err := measure(options)
	if err != nil {
		result.Error = err.Error()
	}
	return printJSON(result)
}

func inSeconds(value float64) time.Duration { return time.Duration(value * float64(time.Second)) }

// openAll opens the streams of a measurement at once and uses each one time: they are warm.
func openAll(options clientOptions, count int) ([]exchanger, error) {
	streams, failures := make([]exchanger, count), make([]error, count)
	var group sync.WaitGroup
	for i := range streams {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			stream, err := options.target.open(options.requestBytes, options.responseBytes)
			if err == nil {
				streams[i], err = stream, stream.exchange()
			}
			failures[i] = err
		}(i)
	}
	group.Wait()
	for _, err := range failures {
		if err != nil {
			return streams, err
		}
	}
	return streams, nil
}

func measureRequests(options clientOptions) (report, error) {
	streams, err := openAll(options, options.workers)
	if err != nil {
		return report{}, err
	}
	var m meter
	m.open(options.warmup, options.measured)
	var group sync.WaitGroup
	for _, stream := range streams {
		group.Add(1)
		go func(stream exchanger) {
			defer group.Done()
			defer stream.Close()
			m.repeat(stream.exchange)
		}(stream)
	}
	group.Wait()
	return m.report(0, options.measured), nil
}

func measureConnects(options clientOptions) (report, error) {
	var m meter
	m.open(options.warmup, options.measured)
	once := func() error {
		stream, err := options.target.open(options.requestBytes, options.responseBytes)
		if err != nil {
			return fmt.Errorf("connecting: %w", err)
		}
		defer stream.Close()
		return stream.exchange()
	}
	var group sync.WaitGroup
	for i := 0; i < options.workers; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			m.repeat(once)
		}()
	}
	group.Wait()
	return m.report(0, options.measured), nil
}

func measureDownloads(options clientOptions) (report, error) {
	var m meter
	conns, err := startDownloads(options, &m)
	defer closeAll(conns)
	if err != nil {
		return report{}, err
	}
	count, elapsed := m.watch()
	return m.report(count, elapsed), nil
}

// startDownloads opens the window and reads on every connection until it is closed.
func startDownloads(options clientOptions, m *meter) ([]net.Conn, error) {
	var conns []net.Conn
	for i := 0; i < options.workers; i++ {
		conn, err := options.target.startDownload()
		if err != nil {
			return conns, err
		}
		conns = append(conns, conn)
	}
	m.open(options.warmup, options.measured)
	for _, conn := range conns {
		go m.countReads(conn, 1)
	}
	return conns, nil
}

// countReads counts what arrives; each byte stands for `weight` bytes.
func (m *meter) countReads(conn net.Conn, weight int64) {
	buffer := make([]byte, bulkChunkBytes)
	for {
		count, err := conn.Read(buffer)
		m.bytes.Add(int64(count) * weight)
		if err != nil {
			m.fail(fmt.Errorf("a transfer ended early: %w", err))
			return
		}
	}
}

func closeAll(conns []net.Conn) {
	for _, conn := range conns {
		conn.Close()
	}
}

func measureUploads(options clientOptions) (report, error) {
	if options.target.tls != nil {
		return report{}, fmt.Errorf("uploads are raw only")
	}
	var m meter
	m.open(options.warmup, options.measured)
	var conns []net.Conn
	defer func() { closeAll(conns) }()
	for i := 0; i < options.workers; i++ {
		conn, err := options.target.dial()
		if err != nil {
			return report{}, err
		}
		conns = append(conns, conn)
		go m.countReads(conn, ackBytes)
		go func() {
			_, err := conn.Write(preamble{mode: modeUpload}.encode())
			if err == nil {
				err = writeForever(conn)
			}
			m.fail(fmt.Errorf("a transfer ended early: %w", err))
		}()
	}
	count, elapsed := m.watch()
	return m.report(count, elapsed), nil
}

// measureBeside takes the latency of one request stream while downloads run flat out.
func measureBeside(options clientOptions) (report, error) {
	streams, err := openAll(options, 1)
	if err != nil {
		return report{}, err
	}
	defer streams[0].Close()
	var m meter
	conns, err := startDownloads(options, &m)
	defer closeAll(conns)
	if err != nil {
		return report{}, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.repeat(streams[0].exchange)
	}()
	count, elapsed := m.watch()
	<-done
	return m.report(count, elapsed), nil
}

// holdStreams keeps idle streams open until our input ends, so that memory can be read.
func holdStreams(options clientOptions) error {
	var streams []exchanger
	for len(streams) < options.workers {
		// In handfuls: a thousand connects at once measure the accept queue.
		more, err := openAll(options, min(16, options.workers-len(streams)))
		if err != nil {
			return printJSON(report{Error: err.Error()})
		}
		streams = append(streams, more...)
	}
	if err := printJSON(report{OperationsTotal: int64(len(streams))}); err != nil {
		return err
	}
	waitForStdin()
	return nil
}
