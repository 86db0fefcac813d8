package main

import (
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// report is what a client prints. Rates are of the measured window; the totals
// count the warm-up too, so that CPU time of the whole run can be divided by them.
type report struct {
	Seconds         float64 `json:"seconds"`
	Operations      int     `json:"operations"`
	OperationsTotal int64   `json:"operations_total"`
	P50Milliseconds float64 `json:"p50_ms"`
	P99Milliseconds float64 `json:"p99_ms"`
	Bytes           int64   `json:"bytes"`
	BytesTotal      int64   `json:"bytes_total"`
	Error           string  `json:"error,omitempty"`
}

// meter collects from all workers of one measurement.
type meter struct {
	begin, end time.Time // of the measured window; set before the workers run
	stopped    atomic.Bool
	operations atomic.Int64
	bytes      atomic.Int64

	mu        sync.Mutex      // guards the fields below
	latencies []time.Duration // of operations that lie whole in the window
	failure   error           // the first one
}

func (m *meter) open(warmup, measured time.Duration) {
	m.begin = time.Now().Add(warmup)
	m.end = m.begin.Add(measured)
}

// fail keeps the first error; after the end errors are our own closing.
func (m *meter) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failure == nil && !m.stopped.Load() {
		m.failure = err
	}
}

// repeat runs one operation after the other until the window closes or one fails.
func (m *meter) repeat(operation func() error) {
	latencies := make([]time.Duration, 0, 1<<14)
	for {
		start := time.Now()
		if start.After(m.end) {
			break
		}
		if err := operation(); err != nil {
			m.fail(err)
			break
		}
		m.operations.Add(1)
		if end := time.Now(); !start.Before(m.begin) && !end.After(m.end) {
			latencies = append(latencies, end.Sub(start))
		}
	}
	m.mu.Lock()
	m.latencies = append(m.latencies, latencies...)
	m.mu.Unlock()
}

// watch sleeps through the window and returns the bytes that arrived in it.
func (m *meter) watch() (count int64, elapsed time.Duration) {
	time.Sleep(time.Until(m.begin))
	before, start := m.bytes.Load(), time.Now()
	time.Sleep(time.Until(m.end))
	count, elapsed = m.bytes.Load()-before, time.Since(start)
	m.stopped.Store(true)
	return count, elapsed
}

func (m *meter) report(bytes int64, elapsed time.Duration) report {
	m.mu.Lock()
	defer m.mu.Unlock()
	sort.Slice(m.latencies, func(i, j int) bool { return m.latencies[i] < m.latencies[j] })
	result := report{
		Seconds:         elapsed.Seconds(),
		Operations:      len(m.latencies),
		OperationsTotal: m.operations.Load(),
		P50Milliseconds: milliseconds(percentile(m.latencies, 50)),
		P99Milliseconds: milliseconds(percentile(m.latencies, 99)),
		Bytes:           bytes,
		BytesTotal:      m.bytes.Load(),
	}
	if m.failure == nil && result.Operations == 0 && bytes == 0 {
		m.failure = fmt.Errorf("nothing came back within %.1f s", elapsed.Seconds())
	}
	if m.failure != nil {
		result.Error = m.failure.Error()
	}
	return result
}

// percentile is the nearest rank: the smallest value that `percent` of all do not exceed.
func percentile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)*percent+99)/100-1]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
