package rest

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"hayloft/server/api"
)

// TestRequestWhileTheServerStops: whoever asked knows that he can ask again.
func TestRequestWhileTheServerStops(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	s := &Server{Log: slog.New(slog.DiscardHandler)}
	answer := httptest.NewRecorder()
	s.answer(func(r *http.Request) (any, error) {
		stop()
		return nil, r.Context().Err()
	})(answer, httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/vms", nil))
	var said api.Error
	if err := json.Unmarshal(answer.Body.Bytes(), &said); err != nil {
		t.Fatal(err)
	}
	if answer.Code != http.StatusServiceUnavailable || said.Error.Class != "unavailable" {
		t.Errorf("%d, %+v", answer.Code, said)
	}
}
