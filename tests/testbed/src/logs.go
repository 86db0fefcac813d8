package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// What every log starts with, so that `kubectl logs` has something to show.
const firstLines = "hello from a fake pod\nsecond line\nthird line\n"

// How often a follower looks for new lines. Polling needs no inotify and costs nothing at this rate.
const followInterval = 20 * time.Millisecond

// log is the log file of a container; `kubectl exec POD -- sh -c 'echo x >>$LOG'` writes to it.
func (k kubelet) log(pod, container string) string {
	file := filepath.Join(k.path(pod), "."+container+".log")
	_ = os.MkdirAll(k.path(pod), 0o755)
	// O_EXCL: of two first readers only one writes, and lines that exec has added stay.
	if f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644); err == nil {
		_, _ = f.WriteString(firstLines)
		f.Close()
	}
	return file
}

// The options of a pod's log subresource that we honour; sinceTime and previous are ignored.
type logOptions struct {
	tail   int64 // this many lines from the end; < 0: all
	limit  int64 // at most this many bytes; < 0: no limit
	follow bool
	stamps bool // the time of reading before each line: the file has none
}

func logOptionsOf(query url.Values) logOptions {
	number := func(name string) int64 {
		if value, err := strconv.ParseInt(query.Get(name), 10, 64); err == nil {
			return value
		}
		return -1
	}
	return logOptions{
		tail:   number("tailLines"),
		limit:  number("limitBytes"),
		follow: query.Get("follow") == "true",
		stamps: query.Get("timestamps") == "true",
	}
}

// copyLog writes a log to w; with follow until ctx ends, w fails or the limit is reached.
func copyLog(ctx context.Context, file string, w io.Writer, o logOptions) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if o.tail >= 0 {
		content, err := io.ReadAll(f)
		if err != nil {
			return err
		}
		if _, err := f.Seek(tailOffset(content, o.tail), io.SeekStart); err != nil {
			return err
		}
	}
	lines := bufio.NewReader(f)
	var part []byte // a line whose end is not written yet
	for ctx.Err() == nil {
		line, err := lines.ReadBytes('\n')
		part = append(part, line...)
		if errors.Is(err, io.EOF) && o.follow {
			if flusher, ok := w.(http.Flusher); ok {
				flusher.Flush()
			}
			time.Sleep(followInterval)
			continue
		}
		if len(part) > 0 && o.stamps {
			part = append([]byte(time.Now().UTC().Format(time.RFC3339Nano)+" "), part...)
		}
		if o.limit >= 0 && int64(len(part)) > o.limit {
			part = part[:o.limit]
		}
		o.limit -= int64(len(part))
		if _, writeErr := w.Write(part); writeErr != nil || err != nil || o.limit == 0 {
			return writeErr
		}
		part = part[:0]
	}
	return nil
}

// tailOffset is where the last lines of content begin.
func tailOffset(content []byte, lines int64) int64 {
	if lines == 0 {
		return int64(len(content))
	}
	end := len(bytes.TrimSuffix(content, []byte("\n")))
	for ; lines > 0; lines-- {
		if end = bytes.LastIndexByte(content[:end], '\n'); end < 0 {
			return 0
		}
	}
	return int64(end) + 1
}
