// Serve runs the zitadel server as a program of its own, as server.mjs is for the
// other one:
//
//	go run ./zitadel/serve config.json
//
// config.json is authz.Config. It prints one line, {"issuer": …}, when it answers,
// and runs until it is interrupted.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/taskcred/taskcred/examples/spire/authz"
	"github.com/taskcred/taskcred/examples/spire/zitadel"
)

func main() {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("give one argument, the configuration's file")
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var c authz.Config
	if err := json.Unmarshal(text, &c); err != nil {
		return err
	}
	s, err := zitadel.Start(c)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"issuer": s.Issuer()}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
