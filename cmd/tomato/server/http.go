package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tomato/cmd/tomato/settings"
	"tomato/httpapi"
	"tomato/operations"
	"tomato/queryside/feed"
)

// Parts of StopLimit. During handOverLimit other instances may take the shards over,
// while this one still serves. After that, requests under way have httpStopLimit to end.
const (
	handOverLimit = 5 * time.Second
	httpStopLimit = 5 * time.Second
)

// listen opens the port, and finds out the URL at which this instance is reached.
func (s *Server) listen(context.Context) (err error) {
	if s.listener, err = net.Listen("tcp", s.config.HTTPAddr); err != nil {
		return err
	}
	s.onStop(func(context.Context) error { // needed if the start fails; otherwise the HTTP server has closed the listener
		_ = s.listener.Close()
		return nil
	})
	configured := s.config.Advertised != ""
	s.url, s.config.Advertised = settings.Reachable("", s.listener.Addr()), settings.Reachable(s.config.Advertised, s.listener.Addr())
	if !s.alone && !configured && s.listener.Addr().(*net.TCPAddr).IP.IsLoopback() {
		s.log.Warn("instances on other machines cannot reach this one: set TOMATO_HTTP_ADDR, and TOMATO_ADVERTISED_URL where they need another address", "address", s.url)
	}
	return nil
}

// readRevocations reads whose tokens were revoked, so that no request is served before they
// are known.
func (s *Server) readRevocations(ctx context.Context) (err error) {
	if s.revocations, err = operations.NewRevocations(ctx, s.db.shared, s.registry, s.log); err != nil {
		return fmt.Errorf("revoked tokens: %w", err)
	}
	return nil
}

// followRevocations follows later revocations. They end the feeds of their subjects.
func (s *Server) followRevocations(context.Context) error {
	if s.hub != nil {
		s.revocations.Tell(s.hub.Revoke)
	}
	s.background("revocations", func(ctx context.Context) error { s.revocations.Follow(ctx); return nil })
	return nil
}

// newAPI makes the authenticator, which checks tokens, and the API, to which the roles
// add their routes.
func (s *Server) newAPI(context.Context) (err error) {
	c := &s.config
	s.auth, err = httpapi.NewAuthenticator(httpapi.AuthConfig{Secrets: c.JWT(), JWKSURL: c.JWKSURL, Issuer: c.JWTIssuer, Audience: c.JWTAudience, MaxTTL: c.JWTMaxTTL,
		Revocations: s.revocations, Registry: s.registry, Log: s.log})
	if err != nil {
		return settings.UsageError{Err: err}
	}
	s.onStop(func(context.Context) error { s.auth.Close(); return nil })
	s.api = httpapi.New(httpapi.Options{Auth: s.auth, AllowedOrigins: c.Origins, Log: s.log, Registry: s.registry, Title: "Tomato", Version: settings.Build()})
	return nil
}

// addCommonRoutes adds the routes that every process has, whatever its roles.
func (s *Server) addCommonRoutes(context.Context) error {
	s.operations.Routes(s.api) // adds only routes that the roles of this process can answer
	feed.AsyncAPI(s.api)
	for path, h := range map[string]http.HandlerFunc{
		"/healthz": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) },
		"/readyz":  s.newHealth().ServeHTTP,
		"/metrics": promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}).ServeHTTP,
	} {
		s.api.Router.Get(path, h)
	}
	if s.options.ExtraRoutes != nil {
		s.options.ExtraRoutes(s.api)
	}
	return nil
}

// serveHTTP begins to answer requests. When the server stops, it waits for the requests
// under way.
func (s *Server) serveHTTP(context.Context) error {
	httpServer := httpapi.NewServer(s.lastOnes(s.api))
	silent := &silentConns{conns: map[net.Conn]struct{}{}}
	httpServer.ConnState = silent.note
	go func() {
		if err := httpServer.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			s.failed <- err
		}
	}()
	s.onStop(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, httpStopLimit) // because the shards need time to stop, too
		defer cancel()
		closing := time.AfterFunc(silentLimit, silent.close)
		defer closing.Stop()
		if httpServer.Shutdown(ctx) != nil {
			return httpServer.Close()
		}
		return nil
	})
	return nil
}

// drainFeedsAtStop registers that the feeds' streams are ended when the server stops. The
// HTTP server would wait for open streams.
func (s *Server) drainFeedsAtStop(context.Context) error {
	if s.hub != nil {
		s.onStop(s.hub.Drain)
	}
	return nil
}

// handOverAtStop registers that the shards are handed over when the server stops, while
// other instances can still reach this one.
func (s *Server) handOverAtStop(context.Context) error {
	if !s.config.has(RoleCommand) {
		return nil
	}
	s.onStop(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, handOverLimit)
		defer cancel()
		s.shards.HandOver(ctx)
		return nil
	})
	return nil
}

// stopReadersAtStop registers that this instance stops its read models, its policies and
// its feed before it hands its shards over, if other instances take its place. When the
// last owner of an older build has handed its shards over, the owners begin to write
// events that an older build cannot read (docs/write-side.md): it must not be reading
// then.
func (s *Server) stopReadersAtStop(context.Context) error {
	if !s.config.has(RoleCommand) {
		return nil
	}
	s.onStop(func(ctx context.Context) error {
		if !s.shards.HasOthers(ctx) {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, readersLimit)
		defer cancel()
		for _, stop := range s.readers {
			if err := stop(ctx); err != nil { // they are stopped again later, and the error is returned then
				s.log.Warn("a part that reads the logs still runs while the shards are handed over", "err", err)
			}
		}
		return nil
	})
	return nil
}

// readersLimit is the time in which read models, policies and feed stop before the shards
// are handed over.
const readersLimit = 4 * time.Second

// notReadyAtStop registers that /readyz answers, when the server stops, that it is not
// ready. Nothing else stops before TOMATO_SHUTDOWN_DELAY has passed, because load balancers
// send requests until they have asked /readyz again.
func (s *Server) notReadyAtStop(context.Context) error {
	s.onStop(func(ctx context.Context) error {
		s.stopping.Store(true)
		if s.config.StopDelay == 0 {
			return nil
		}
		s.log.Info("the server stops; it takes requests until load balancers have noticed", "delay", s.config.StopDelay)
		select {
		case <-time.After(s.config.StopDelay):
		case <-ctx.Done():
		}
		return nil
	})
	return nil
}

// silentConns is the set of connections on which no request was sent yet. Clients open
// such connections in advance, and http.Server.Shutdown would wait five seconds for them.
type silentConns struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// silentLimit is how long a shutdown waits for the first requests on silentConns.
const silentLimit = 300 * time.Millisecond

func (s *silentConns) note(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == http.StateNew {
		s.conns[c] = struct{}{}
	} else {
		delete(s.conns, c)
	}
}

func (s *silentConns) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close() // an error does not matter, because the connection ends anyway
	}
}

// lastOnes makes a server that stops close each connection after its next answer. If the
// server closed an idle connection instead, the client might write a request to it at the
// same moment, and the request would fail.
func (s *Server) lastOnes(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.stopping.Load() {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}
