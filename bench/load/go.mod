module tower.internal/bench/load

go 1.21
