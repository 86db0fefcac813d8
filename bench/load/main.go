// Command load is the other half of `python -m bench`: what makes the load, and
// what answers it, as processes of their own, so that the tunnel under test never
// shares an interpreter, a scheduler or a garbage collector with its yardstick.
//
//	load upstream   the raw server and the member's HTTPS apiserver
//	load client     one measurement; prints one JSON object
//	load relay      a link with a round trip, a rate and a queue
//	load agents     many simulated agents, each with a tunnel of its own
//
// Everything binds and dials loopback only, and every long-lived command ends when
// its standard input does: a bench that dies takes its processes with it.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("usage: load upstream|client|relay|agents [flags]; each has -help"))
	}
	commands := map[string]func([]string) error{
		"upstream": runUpstream,
		"client":   runClient,
		"relay":    runRelay,
		"agents":   runAgents,
	}
	command, known := commands[os.Args[1]]
	if !known {
		fail(fmt.Errorf("unknown command %q; there are upstream, client, relay and agents", os.Args[1]))
	}
	if err := command(os.Args[2:]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "load:", err)
	os.Exit(1)
}

// printJSON writes one line to standard output: the contract with the harness.
func printJSON(value any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}

// waitForStdin returns when whoever started us closes our input, or dies.
func waitForStdin() {
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// requireLoopback refuses every address that another machine could reach.
func requireLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("%s is not a loopback address; the bench uses no other", address)
	}
	return nil
}
