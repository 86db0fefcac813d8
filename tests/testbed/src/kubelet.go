package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// The streaming half of a kubelet, for pods that run nowhere: what kube-apiserver calls for
// logs, exec, attach and port-forward. kwok does the other half (status); its own streaming
// server hands on no exit code, never closes stdin and ignores stdin in attach.
//
//   - exec (exec.go) runs the command on this machine, in DIR/NAMESPACE_POD
//   - logs (logs.go) reads the container's log file in that folder
//   - attach -i echoes stdin; without stdin it follows the log
//   - port-forward to port N of any pod dials 127.0.0.1:N; port 80 is an HTTP server of our own
type kubelet struct {
	dir    string // holds one folder a pod
	target string // HOST:PORT behind port 80 of every pod
}

// Upstream's limits: a stream without traffic ends after four hours; a client has 30 s to open its streams.
const (
	idleTimeout     = 4 * time.Hour
	creationTimeout = 30 * time.Second
)

func (k kubelet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The paths are /containerLogs/NS/POD/C, /exec and /attach/NS/POD/[UID/]C, /portForward/NS/POD[/UID].
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if path[0] == "healthz" {
		fmt.Fprint(w, "ok")
		return
	}
	if len(path) < 3 {
		http.NotFound(w, r)
		return
	}
	pod, container := path[1]+"_"+path[2], path[len(path)-1]
	switch path[0] {
	case "containerLogs":
		w.WriteHeader(http.StatusOK) // at once, not with the first line: a follower may wait for long
		_ = copyLog(r.Context(), k.log(pod, container), w, logOptionsOf(r.URL.Query()))
	case "exec", "attach":
		options, err := remotecommand.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		} else if path[0] == "exec" {
			remotecommand.ServeExec(w, r, k, pod, "", container, r.URL.Query()["command"], options,
				idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
		} else {
			remotecommand.ServeAttach(w, r, k, pod, "", container, options,
				idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
		}
	case "portForward":
		options, err := portforward.NewV4Options(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		portforward.ServePortForward(w, r, k, pod, "", options,
			idleTimeout, creationTimeout, portforward.SupportedProtocols)
	default:
		http.NotFound(w, r)
	}
}

// path is the folder of a pod: the working directory of its commands, and where its logs are.
func (k kubelet) path(pod string) string { return filepath.Join(k.dir, pod) }

// AttachContainer echoes stdin, as a container that runs `cat` would, or follows the log.
func (k kubelet) AttachContainer(ctx context.Context, pod, _, container string, in io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	if in != nil {
		_, err := io.Copy(out, in)
		return err
	}
	return copyLog(ctx, k.log(pod, container), out, logOptions{tail: -1, limit: -1, follow: true})
}

// PortForward relays one connection; the client's half-close reaches the target.
func (k kubelet) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
	if port == 80 {
		address = k.target
	}
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, stream)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, conn)
	return err
}

// serveTarget starts the HTTP server behind port 80 of every pod and returns its address.
func serveTarget(name string) (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	greet := func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hello from the port-forward target of %s\n", name)
	}
	go func() { _ = http.Serve(listener, http.HandlerFunc(greet)) }()
	return listener.Addr().String(), nil
}

func runKubelet(args []string) error {
	flags := flag.NewFlagSet("kubelet", flag.ExitOnError)
	name := flags.String("name", "kubelab", "name of the control plane, in the port-forward target's answer")
	listen := flags.String("listen", "", "HOST:PORT")
	cert := flags.String("cert", "", "serving certificate")
	key := flags.String("key", "", "its key")
	clientCA := flags.String("client-ca", "", "CA of the apiserver's client certificate")
	dir := flags.String("dir", "", "folder of the pods' folders")
	_ = flags.Parse(args) // ExitOnError

	pem, err := os.ReadFile(*clientCA)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("no certificate in %s", *clientCA)
	}
	target, err := serveTarget(*name)
	if err != nil {
		return err
	}
	server := &http.Server{
		Addr:      *listen,
		Handler:   kubelet{dir: *dir, target: target},
		TLSConfig: &tls.Config{ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert},
		// No HTTP/2: exec upgrades the connection.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	return server.ListenAndServeTLS(*cert, *key)
}
