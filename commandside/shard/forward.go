package shard

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"tomato/domain"
	"tomato/httpapi"
)

// This file owns the forwarding of commands between instances, on both sides.

// CommandsPath is the path at which Handler must be served.
const CommandsPath = "/internal/shard-commands"

// forwardMargin is how much earlier the owner's deadline is than the caller's, so that
// the owner's answer to a passed deadline still arrives.
const forwardMargin = 50 * time.Millisecond

// errNotSent means that a command was not sent, because no connection could be made.
// It may be sent to another instance.
var errNotSent = errors.New("not sent")

// misdirected is the answer 421: the asked instance does not own the shard. record is
// the owner record that it knows, if it knows one. It is checked like a record of the
// topic shard-owners.
type misdirected struct{ record []byte }

func (m misdirected) Error() string { return "another instance owns the shard" }

// forward sends a command to the shard's owner and returns its answer.
func (s *Shards) forward(ctx context.Context, to Owner, r Request) (Result, error) {
	if err := r.prepare(); err != nil {
		return Result{}, err
	}
	body, err := encodeRequest(r)
	if err != nil {
		return Result{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(to.URL, "/")+CommandsPath, bytes.NewReader(body))
	if err != nil {
		return Result{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	timeout := maxForwardedFor
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline) - forwardMargin
	}
	s.signRequest(req.Header, body, timeout)
	resp, err := s.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return Result{}, fmt.Errorf("%w: %w", errNotSent, err)
		}
		return Result{}, fmt.Errorf("%w: %w", ErrUnavailable, err) // the command may have been decided
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxForwarded))
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		res, err := decodeAnswer(r.Topic, b)
		if err != nil && domain.RefusedWith(err) == "" && !errors.As(err, new(*UnknownEvent)) { // the command may have been decided
			err = fmt.Errorf("%w: the owner's answer cannot be read: %w", ErrUnavailable, err)
		}
		return res, err
	case http.StatusMisdirectedRequest:
		return Result{}, misdirected{b}
	case http.StatusServiceUnavailable:
		var answer upgradeAnswer
		if json.Unmarshal(b, &answer) == nil && answer.Upgrade != nil {
			return Result{}, answer.Upgrade
		}
	}
	if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusBadRequest {
		if s.loggedThere.allow() {
			s.Log.Error("the owner of a shard refuses what this instance forwards", "shard", to.Shard, "owner", to.Owner, "url", to.URL, "err", refusedCall(resp, b))
		}
	}
	return Result{}, fmt.Errorf("%w: owner answered %s", ErrUnavailable, resp.Status)
}

// Handler takes commands that other instances forward. It never forwards them further.
// A command for a shard that is not served here gets 421 with the owner record that
// this instance knows, unless that names this instance.
func (s *Shards) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, limit, ok := s.verifyCall(w, r)
		if !ok {
			return
		}
		req, err := decodeRequest(b)
		if err != nil {
			s.refuseCall(w, r, refusedCommand, httpapi.NewProblem(http.StatusBadRequest, "bad_request", "The forwarded command is not valid: "+err.Error()+"."))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		p := s.partitionOf(&req)
		s.mu.Lock()
		sh := s.serving[p]
		s.mu.Unlock()
		if sh == nil {
			s.misdirect(w, p)
			return
		}
		var res Result
		if err = s.Menus.WaitFor(ctx, req.After); err == nil {
			res, err = s.local(ctx, sh, &req)
		}
		if errors.Is(err, errNotDecided) {
			s.misdirect(w, p)
			return
		}
		if upgrade := (*UpgradeInProgress)(nil); errors.As(err, &upgrade) {
			writeAnswer(w, http.StatusServiceUnavailable, upgradeAnswer{upgrade})
			return
		}
		answer, err := encodeAnswer(res, err)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	})
}

// upgradeAnswer is the body of a 503 that is an *UpgradeInProgress. It is no field of
// wireAnswer, because a build from before epochs would take such an answer for a success.
type upgradeAnswer struct {
	Upgrade *UpgradeInProgress `json:"upgradeInProgress"`
}

// misdirect answers 421 with the known owner.
func (s *Shards) misdirect(w http.ResponseWriter, p int32) {
	known, ok, _ := s.owners.owner(p)
	if !ok || known.Owner == s.Instance {
		known = Owner{}
	}
	writeAnswer(w, http.StatusMisdirectedRequest, known)
}

// writeAnswer answers another instance with JSON.
func writeAnswer(w http.ResponseWriter, status int, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b)
}
