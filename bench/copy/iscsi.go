package main

import "context"

func (b *bench) iscsi(context.Context) ([]way, error) { return nil, nil }
