package main

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"net"
	"os"
	"regexp"
	"sort"
	"sync"
	"time"
)

// The schedule of SPEC 8, as a real agent keeps it.
const (
	quickFor        = 60 * time.Second
	quickDelay      = 500 * time.Millisecond
	firstCeiling    = time.Second
	lastCeiling     = 30 * time.Second
	dialOverlap     = time.Second     // for one that is not connected
	answerOverlap   = 3 * time.Second // ... and for one that is
	dialTimeout     = 10 * time.Second
	parallelDials   = 3
	retryJitter     = 0.25
	stableAfter     = 5 * time.Second
	progressEvery   = 2 * time.Second
	maxHonoredRetry = 300 * time.Second
)

// identity is an agent's certificate and key, as the harness has made them.
type identity struct {
	Cluster     string `json:"cluster"`
	Certificate string `json:"certificate"` // base64 of its DER
	Key         string `json:"key"`         // base64 of PKCS #8
}

// fleet is all simulated agents of one process, and what they have seen.
type fleet struct {
	address, audience string
	outer             *tls.Config
	roots             *x509.CertPool
	agents            []*agent

	mu        sync.Mutex // guards the fields below
	connected int
	current   round
	failure   error // the last one; for people
}

// round is what happens from the first loss (or the start) until all agents are connected.
type round struct {
	Number          int     `json:"round"`
	Agents          int     `json:"agents"`
	Seconds         float64 `json:"seconds"`
	P50Milliseconds float64 `json:"p50_ms"`
	P99Milliseconds float64 `json:"p99_ms"`
	Dials           int     `json:"dials"`
	Refused         int     `json:"refused"` // told when to come back
	Failed          int     `json:"failed"`
	Lost            int     `json:"lost"`
	// How often each failure was seen.
	Failures map[string]int `json:"failures"`

	began     time.Time
	latencies []time.Duration // of dials that came to a tunnel
}

// agent is one simulated agent: its identity and its schedule.
type agent struct {
	fleet *fleet
	index int
	der   []byte
	key   *ecdsa.PrivateKey
	inner *tls.Config

	mu        sync.Mutex // guards the fields below
	notBefore time.Time  // the server asked for it
}

// runAgents holds one tunnel for each identity until its input ends. It prints a line of
// JSON whenever all are connected: after the start, and again after every loss.
func runAgents(arguments []string) error {
	flags := flag.NewFlagSet("agents", flag.ExitOnError)
	address := flags.String("address", "", "HOST:PORT of the server")
	authority := flags.String("ca", "", "PEM file of the server's CA")
	identities := flags.String("identities", "", "JSON file: a list of cluster, certificate, key")
	audience := flags.String("audience", "", "whom assertions are addressed to")
	_ = flags.Parse(arguments)
	all, err := newFleet(*address, *authority, *identities, *audience)
	if err != nil {
		return err
	}
	all.current.began = time.Now()
	for _, each := range all.agents {
		go each.run()
	}
	go all.sayProgress()
	waitForStdin()
	return nil
}

func newFleet(address, authority, identities, audience string) (*fleet, error) {
	if err := requireLoopback(address); err != nil {
		return nil, err
	}
	target, err := newEndpoint(address, "", tlsFiles{ca: authority, serverName: hostOf(address)})
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(identities)
	if err != nil {
		return nil, err
	}
	var known []identity
	if err := json.Unmarshal(text, &known); err != nil {
		return nil, fmt.Errorf("%s: %w", identities, err)
	}
	all := &fleet{address: address, audience: audience, outer: target.tls, roots: target.tls.RootCAs}
	for index, each := range known {
		one, err := newAgent(all, index, each)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", each.Cluster, err)
		}
		all.agents = append(all.agents, one)
	}
	all.current = round{Number: 1, Agents: len(all.agents)}
	return all, nil
}

func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address)
	return host
}

func newAgent(all *fleet, index int, from identity) (*agent, error) {
	der, err := base64.StdEncoding.DecodeString(from.Certificate)
	if err != nil {
		return nil, err
	}
	pkcs8, err := base64.StdEncoding.DecodeString(from.Key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("its key is not on an elliptic curve")
	}
	inner := &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"tower-inner/1"},
		// There is no name to check, only the CA: below.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			options := x509.VerifyOptions{Roots: all.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
			_, err := state.PeerCertificates[0].Verify(options)
			return err
		},
	}
	return &agent{fleet: all, index: index, der: der, key: key, inner: inner}, nil
}

// source is an address of this machine for each agent: members live in networks of their own.
func (a *agent) source() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 16+byte(a.index>>16), byte(a.index>>8), byte(a.index))}
}

// run keeps the agent connected for ever.
func (a *agent) run() {
	lostAt, ceiling := time.Now(), firstCeiling
	for {
		tunnel := a.connect(lostAt, &ceiling)
		// Only now: of two dials that came through in the same moment one counts.
		a.fleet.up(tunnel.readyAfter)
		since := time.Now()
		clean := tunnel.serve()
		a.fleet.lost()
		if lasted := time.Since(since); lasted >= stableAfter {
			lostAt, ceiling = time.Now(), firstCeiling
		}
		if retry := tunnel.retryAfter; clean && retry > 0 {
			a.asked(retry)
		}
	}
}

// connect dials until a tunnel is up. Dials overlap: one that is not connected after a
// second, or not through three seconds later, does not hold up the next; when one is
// through the others are given up.
func (a *agent) connect(lostAt time.Time, ceiling *time.Duration) *tunnel {
	up := make(chan *tunnel, parallelDials)
	ended := make(chan struct{}, parallelDials)
	var dials []*dial
	underWay := 0
	choose := func(chosen *tunnel) *tunnel {
		for _, each := range dials {
			each.abandonUnless(chosen)
		}
		return chosen
	}
	for {
		delay := time.NewTimer(a.delay(lostAt, ceiling))
		for waiting := true; waiting; {
			select {
			case tunnel := <-up:
				return choose(tunnel)
			case <-ended:
				underWay--
			case <-delay.C:
				waiting = false
			}
		}
		attempt := &dial{agent: a, began: time.Now(), connected: make(chan struct{})}
		dials, underWay = append(dials, attempt), underWay+1
		go func() {
			if tunnel := attempt.run(); tunnel != nil {
				up <- tunnel
			}
			ended <- struct{}{}
		}()
		overlap, connected := time.After(dialOverlap), attempt.connected
		before := underWay
		for underWay >= parallelDials || underWay >= before && overlap != nil {
			select {
			case tunnel := <-up:
				return choose(tunnel)
			case <-ended:
				underWay--
			case <-connected:
				overlap, connected = time.After(answerOverlap), nil
			case <-overlap:
				overlap, connected = nil, nil
			}
		}
	}
}

func (a *agent) delay(lostAt time.Time, ceiling *time.Duration) time.Duration {
	own := time.Duration(rand.Int63n(int64(quickDelay)))
	if time.Since(lostAt) >= quickFor {
		own = time.Duration(rand.Int63n(int64(*ceiling)))
		*ceiling = min(*ceiling*2, lastCeiling)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return max(own, time.Until(a.notBefore))
}

// asked notes "come back in n s", with the jitter of SPEC 8.
func (a *agent) asked(wait time.Duration) {
	wait = min(wait, maxHonoredRetry)
	wait += time.Duration(rand.Float64() * retryJitter * float64(wait))
	a.mu.Lock()
	defer a.mu.Unlock()
	if until := time.Now().Add(wait); until.After(a.notBefore) {
		a.notBefore = until
	}
}

// Errors of the net package begin with both ends.
var withoutAddresses = regexp.MustCompile(`[0-9.]+:[0-9]+(->)?:? ?`)

// What happened

func (f *fleet) dialled(note func(*round)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	note(&f.current)
}

func (f *fleet) failed(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current.Failed++
	f.failure = err
	if f.current.Failures == nil {
		f.current.Failures = map[string]int{}
	}
	f.current.Failures[withoutAddresses.ReplaceAllString(err.Error(), "")]++
}

func (f *fleet) lost() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.current.began.IsZero() {
		f.current.began = time.Now()
	}
	f.current.Lost++
	f.connected--
}

func (f *fleet) up(took time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current.latencies = append(f.current.latencies, took)
	if f.connected++; f.connected < len(f.agents) {
		return
	}
	done := f.current
	done.Seconds = time.Since(done.began).Seconds()
	sort.Slice(done.latencies, func(i, j int) bool { return done.latencies[i] < done.latencies[j] })
	done.P50Milliseconds = milliseconds(percentile(done.latencies, 50))
	done.P99Milliseconds = milliseconds(percentile(done.latencies, 99))
	_ = printJSON(done)
	f.current = round{Number: done.Number + 1, Agents: len(f.agents)}
}

// sayProgress tells people on standard error how far a round is that takes its time.
func (f *fleet) sayProgress() {
	for range time.Tick(progressEvery) {
		f.mu.Lock()
		if f.connected < len(f.agents) {
			fmt.Fprintf(os.Stderr, "%d of %d agents connected; %d dials, %d told to come back, %d failed; last: %v\n",
				f.connected, len(f.agents), f.current.Dials, f.current.Refused, f.current.Failed, f.failure)
		}
		f.mu.Unlock()
	}
}
