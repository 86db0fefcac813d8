package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
)

// The few answers of a kube-apiserver that an agent asks for before it serves: who
// the member is, which version it runs, and whether the agent may do its work.
// Everything is allowed: the bench measures the way, not the rights.

const maxReviewBytes = 64 << 10

func answerMember(conn net.Conn, request *http.Request, uid string) error {
	status, body := memberAnswer(request, uid)
	encoded, err := json.Marshal(body)
	if err != nil {
		return err
	}
	_, err = conn.Write(append(responseHead(status, "application/json", len(encoded)), encoded...))
	return err
}

func memberAnswer(request *http.Request, uid string) (int, any) {
	path := request.URL.Path
	switch {
	case request.Method == http.MethodPost && strings.HasPrefix(path, "/apis/authorization.k8s.io/v1/"):
		return http.StatusCreated, review(request)
	case path == "/version":
		return http.StatusOK, map[string]string{
			"major": "1", "minor": "33", "gitVersion": "v1.33.0-bench", "platform": "linux/amd64",
		}
	case path == "/api/v1/namespaces/kube-system":
		return http.StatusOK, map[string]any{
			"kind": "Namespace", "apiVersion": "v1",
			"metadata": map[string]any{"name": "kube-system", "uid": uid, "resourceVersion": "1"},
			"status":   map[string]string{"phase": "Active"},
		}
	case path == "/readyz" || path == "/livez" || path == "/healthz":
		return http.StatusOK, "ok"
	}
	return http.StatusNotFound, map[string]any{
		"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
		"message": "the bench's member knows no " + path,
	}
}

// review returns the caller's own review object with a status that allows it.
func review(request *http.Request) map[string]any {
	object := map[string]any{"apiVersion": "authorization.k8s.io/v1"}
	if body, err := io.ReadAll(io.LimitReader(request.Body, maxReviewBytes)); err == nil {
		_ = json.Unmarshal(body, &object)
	}
	object["status"] = map[string]any{
		"allowed":          true,
		"incomplete":       false,
		"nonResourceRules": []any{map[string]any{"verbs": []string{"*"}, "nonResourceURLs": []string{"*"}}},
		"resourceRules": []any{map[string]any{
			"verbs": []string{"*"}, "apiGroups": []string{"*"}, "resources": []string{"*"},
		}},
	}
	return object
}
