package kafkaprocess

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"tomato/eventlog/filelock"
)

// pom is a Maven project that names the jars: Kafka, and a logger.
//
//go:embed pom.xml
var pom []byte

// Home returns the folder of the jars. It is $TOMATO_KAFKA_HOME if that is set, else a
// folder in the user's cache directory.
func Home() (string, error) {
	if h := os.Getenv("TOMATO_KAFKA_HOME"); h != "" {
		return filepath.Abs(h)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for Kafka's jars: %w; set TOMATO_KAFKA_HOME", err)
	}
	return filepath.Join(cache, "tomato", "kafka-"+Version), nil
}

// Fetch fetches Kafka's jars into home/libs with Maven, unless they are there already.
// If several processes call it at the same time, one of them fetches the jars and the
// others wait. It fails with ErrAbsent if there is no Maven, or if Maven cannot reach a
// repository.
func Fetch(ctx context.Context, home string) error {
	libs := filepath.Join(home, "libs")
	if _, err := os.Stat(libs); err == nil {
		return nil
	}
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	lock, err := filelock.Wait(ctx, filepath.Join(home, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := os.Stat(libs); err == nil {
		return nil // another process was faster
	}
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return fmt.Errorf("%w: %s has no jars and there is no mvn on PATH to fetch them: install Maven (Debian: apt-get install maven) or run .ci/setup test", ErrAbsent, home)
	}
	if err := os.WriteFile(filepath.Join(home, "pom.xml"), pom, 0o644); err != nil {
		return err
	}
	// The jars go into another folder, which is renamed when it is complete. So libs
	// never exists with only some of the jars.
	part := libs + ".part"
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, mvn, "-B", "-q", "-f", filepath.Join(home, "pom.xml"),
		"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+part)
	cmd.Dir = home
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: fetching the jars with Maven: %w\n%s", ErrAbsent, err, out[max(0, len(out)-1000):])
	}
	return os.Rename(part, libs)
}

// format makes dir/data the storage of a node of a new cluster. Kafka's tool takes a
// second for this, so format runs it once and keeps its result in home. The result is
// the same for every new directory, except for the node's id and the directory's id,
// which must be different for each node of a cluster.
func format(ctx context.Context, java, home, dir string, n node) error {
	lock, err := filelock.Wait(ctx, filepath.Join(home, "lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	blank := filepath.Join(home, "formatted")
	if _, err := os.Stat(blank); err != nil {
		tmp, err := os.MkdirTemp(home, "format-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		if err := os.Mkdir(filepath.Join(tmp, "data"), 0o755); err != nil {
			return err
		}
		if err := writeProperties(tmp, Options{}, node{id: 1, own: ports{1, 2}, voters: voters([]ports{{1, 2}}), copies: 1, inSync: 1}); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", filepath.Join(home, "libs", "*"), "kafka.tools.StorageTool",
			"format", "--cluster-id", "dG9tYXRvLXRvbWF0by1r", "--config", filepath.Join(tmp, "server.properties"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("formatting Kafka's storage: %w\n%s", err, out)
		}
		if err := os.Rename(filepath.Join(tmp, "data"), blank); err != nil {
			return err
		}
	}
	data := filepath.Join(dir, "data")
	entries, err := os.ReadDir(blank)
	if err != nil {
		return err
	}
	// meta.properties is written last, because its presence means that the storage is
	// formatted.
	var errs []error
	for _, e := range entries {
		if e.Type().IsRegular() && e.Name() != "meta.properties" {
			errs = append(errs, copyFile(filepath.Join(blank, e.Name()), filepath.Join(data, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	meta, err := os.ReadFile(filepath.Join(blank, "meta.properties"))
	if err != nil {
		return err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	var own []byte
	for line := range strings.Lines(string(meta)) {
		switch name, _, _ := strings.Cut(line, "="); name {
		case "node.id":
			line = fmt.Sprintf("node.id=%d\n", n.id)
		case "directory.id":
			line = fmt.Sprintf("directory.id=%s\n", base64.RawURLEncoding.EncodeToString(id[:]))
		}
		own = append(own, line...)
	}
	return os.WriteFile(filepath.Join(data, "meta.properties"), own, 0o600)
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}
