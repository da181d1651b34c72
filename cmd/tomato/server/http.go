package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tomato/cmd/tomato/settings"
	"tomato/httpapi"
	"tomato/queryside/feed"
)

// handOverLimit is how much of StopLimit the other instances have to take the shards
// over, while this one still serves; httpStopLimit is how much requests under way may
// take after that.
const (
	handOverLimit = 5 * time.Second
	httpStopLimit = 5 * time.Second
)

// listen opens the port, and tells from it where this instance is reached.
func (s *Server) listen(context.Context) (err error) {
	if s.listener, err = net.Listen("tcp", s.config.HTTPAddr); err != nil {
		return err
	}
	s.onStop(func(context.Context) error { // for a start that fails; else the HTTP server has closed it
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

// newAPI makes the API, to which the roles add their routes, and what checks tokens.
func (s *Server) newAPI(context.Context) (err error) {
	c := &s.config
	s.auth, err = httpapi.NewAuthenticator(httpapi.AuthConfig{Secret: c.JWTSecret, JWKSURL: c.JWKSURL, Issuer: c.JWTIssuer, Audience: c.JWTAudience, Log: s.log})
	if err != nil {
		return settings.UsageError{Err: err}
	}
	s.onStop(func(context.Context) error { s.auth.Close(); return nil })
	s.api = httpapi.New(httpapi.Options{Auth: s.auth, AllowedOrigins: c.Origins, Log: s.log, Registry: s.registry, Title: "Tomato", Version: settings.Build()})
	return nil
}

// addCommonRoutes adds the routes that every process has, whatever its roles.
func (s *Server) addCommonRoutes(context.Context) error {
	s.operations.Routes(s.api) // those of them that the roles can answer
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

// serveHTTP answers requests from now on. At its stop it waits for those under way.
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
		ctx, cancel := context.WithTimeout(ctx, httpStopLimit) // the shards want time, too
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

// drainFeedsAtStop ends the feeds' streams at the stop: the HTTP server waits for
// streams that are open.
func (s *Server) drainFeedsAtStop(context.Context) error {
	if s.hub != nil {
		s.onStop(s.hub.Drain)
	}
	return nil
}

// handOverAtStop hands the shards over at the stop, while the other instances can
// still reach this one.
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

// notReadyAtStop lets /readyz answer at the stop that this process is not ready.
func (s *Server) notReadyAtStop(context.Context) error {
	s.onStop(func(context.Context) error { s.stopping.Store(true); return nil })
	return nil
}

// silentConns are connections on which nothing was sent yet. Clients open some
// in advance; a shutdown would wait five seconds for each.
type silentConns struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// silentLimit is how long a shutdown waits for their first request.
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
		_ = c.Close() // it ends either way
	}
}

// lastOnes lets a server that stops close each connection after its next answer:
// closed while it is idle, it may be so just when the client writes its next
// request to it.
func (s *Server) lastOnes(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.stopping.Load() {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}
