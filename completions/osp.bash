# Completion of osp for bash 3.2 and later. Written by `osp completion`: changes made here get lost.

# The words among $2... that begin with $1.
_osp_words() {
    local word
    for word in "${@:2}"; do
        if [[ $word == "$1"* ]]; then COMPREPLY+=("$(printf %q "$word")"); fi
    done
}

# Folders, and the files that fit one of the patterns $2..., that begin with $1.
_osp_files() {
    local path pattern start=$1
    # What was typed may be quoted; readline quotes what it puts there by itself.
    case $start in
        [\'\"]*) start=${start:1} ;;
        *) start=${start//\\/} ;;
    esac
    compopt -o filenames 2>/dev/null
    while IFS= read -r path; do COMPREPLY+=("$path"); done < <(compgen -d -- "$start")
    while IFS= read -r path; do
        for pattern in "${@:2}"; do
            if [[ $path == $pattern && ! -d $path ]]; then
                COMPREPLY+=("$path")
                break
            fi
        done
    done < <(compgen -f -- "$start")
}

# Whether the option $2 of the command $1 takes a value.
_osp_takes_value() {
    case "$1 $2" in
        'generate --style' | 'generate -s' | \
            'generate --output' | 'generate -o' | \
            'generate --seed' | \
            'generate --count' | 'generate -c' | \
            'generate --negative-prompt' | 'generate -n' | \
            'generate --text' | \
            'generate --size' | \
            'generate --frames' | 'generate -f' | \
            'generate --seconds' | 'generate -t' | \
            'generate --fps' | \
            'generate --steps' | \
            'generate --cfg' | 'generate -g' | \
            'generate --cutoff' | \
            'generate --shift' | \
            'generate --sampler' | \
            'generate --lora' | 'generate -l' | \
            'generate --cache' | \
            'generate --cache-start' | \
            'generate --preview' | \
            'generate --pick' | \
            'generate --from' | \
            'generate --from-file' | 'generate -F' | \
            'generate --model' | 'generate -m' | \
            'generate --device' | \
            'generate --dtype' | \
            'generate --offload' | \
            'generate --quant' | \
            'generate --attention' | \
            'generate --gpus' | \
            'generate --max-vram' | \
            'generate --max-ram' | \
            'generate --config' | \
            'stylize --style' | 'stylize -s' | \
            'stylize --output' | 'stylize -o' | \
            'stylize --seed' | \
            'stylize --count' | 'stylize -c' | \
            'stylize --strength' | \
            'stylize --negative-prompt' | 'stylize -n' | \
            'stylize --size' | \
            'stylize --frames' | 'stylize -f' | \
            'stylize --seconds' | 'stylize -t' | \
            'stylize --fps' | \
            'stylize --steps' | \
            'stylize --cfg' | 'stylize -g' | \
            'stylize --cutoff' | \
            'stylize --shift' | \
            'stylize --sampler' | \
            'stylize --lora' | 'stylize -l' | \
            'stylize --cache' | \
            'stylize --cache-start' | \
            'stylize --preview' | \
            'stylize --pick' | \
            'stylize --from' | \
            'stylize --from-file' | 'stylize -F' | \
            'stylize --model' | 'stylize -m' | \
            'stylize --device' | \
            'stylize --dtype' | \
            'stylize --offload' | \
            'stylize --quant' | \
            'stylize --attention' | \
            'stylize --gpus' | \
            'stylize --max-vram' | \
            'stylize --max-ram' | \
            'stylize --config' | \
            'extend --style' | 'extend -s' | \
            'extend --text' | \
            'extend --output' | 'extend -o' | \
            'extend --sink' | \
            'extend --seconds' | 'extend -t' | \
            'extend --frames' | 'extend -f' | \
            'extend --fps' | \
            'extend --from-file' | 'extend -F' | \
            'extend --from' | \
            'extend --resume' | \
            'extend --seed' | \
            'extend --negative-prompt' | 'extend -n' | \
            'extend --size' | \
            'extend --steps' | \
            'extend --cfg' | 'extend -g' | \
            'extend --cutoff' | \
            'extend --shift' | \
            'extend --sampler' | \
            'extend --context' | \
            'extend --latent-frames' | \
            'extend --stages' | \
            'extend --anchor-color' | \
            'extend --lora' | 'extend -l' | \
            'extend --cache' | \
            'extend --cache-start' | \
            'extend --model' | 'extend -m' | \
            'extend --device' | \
            'extend --dtype' | \
            'extend --offload' | \
            'extend --quant' | \
            'extend --attention' | \
            'extend --max-vram' | \
            'extend --max-ram' | \
            'extend --config' | \
            'train-lora --out' | 'train-lora -o' | \
            'train-lora --model' | 'train-lora -m' | \
            'train-lora --mode' | \
            'train-lora --condition' | \
            'train-lora --trigger' | \
            'train-lora --rank' | \
            'train-lora --alpha' | \
            'train-lora --targets' | \
            'train-lora --size' | \
            'train-lora --frames' | 'train-lora -f' | \
            'train-lora --fps' | \
            'train-lora --stride' | \
            'train-lora --windows' | \
            'train-lora --latent-frames' | \
            'train-lora --epochs' | \
            'train-lora --max-steps' | \
            'train-lora --batch-size' | \
            'train-lora --accumulate' | \
            'train-lora --lr' | \
            'train-lora --weight-decay' | \
            'train-lora --betas' | \
            'train-lora --eps' | \
            'train-lora --max-grad-norm' | \
            'train-lora --optimizer' | \
            'train-lora --lr-schedule' | \
            'train-lora --warmup' | \
            'train-lora --ema' | \
            'train-lora --seed' | \
            'train-lora --caption-drop' | \
            'train-lora --cutoff' | \
            'train-lora --timesteps' | \
            'train-lora --sigma-shift' | \
            'train-lora --sigma-power' | \
            'train-lora --device' | \
            'train-lora --dtype' | \
            'train-lora --quant' | \
            'train-lora --gpus' | \
            'train-lora --context-parallel' | \
            'train-lora --max-vram' | \
            'train-lora --max-ram' | \
            'train-lora --swap-blocks' | \
            'train-lora --save-every' | \
            'train-lora --keep' | \
            'train-lora --sample-every' | \
            'train-lora --sample-prompt' | \
            'train-lora --sample-image' | \
            'train-lora --save-format' | \
            'train-lora --log' | \
            'train-lora --cache-dir' | \
            'train-lora --title' | \
            'train-lora --resume' | \
            'train-lora --config' | \
            'styles --gallery' | \
            'styles --image' | \
            'download --local' | \
            'download --revision' | \
            'download --include' | \
            'download --exclude' | \
            'download --mirror' | \
            'download --jobs' | \
            'download --limit-rate' | \
            'bench --photos' | \
            'bench --out' | \
            'bench --weights' | \
            'bench --model' | 'bench -m' | \
            'bench --caches' | \
            'bench --steps' | \
            'bench --style' | 'bench -s' | \
            'models inspect --model' | 'models inspect -m' | \
            'dataset check --model' | 'dataset check -m' | \
            'dataset check --mode' | \
            'dataset check --condition' | \
            'dataset check --size' | \
            'dataset check --frames' | 'dataset check -f' | \
            'dataset check --fps' | \
            'dataset check --stride' | \
            'dataset check --windows' | \
            'dataset check --seed' | \
            'dataset check --report' | \
            'dataset build --style' | 'dataset build -s' | \
            'dataset build --output' | 'dataset build -o' | \
            'dataset build --frames' | 'dataset build -f' | \
            'dataset build --fps' | \
            'dataset build --size' | \
            'dataset build --count' | 'dataset build -c' | \
            'dataset build --seed' | \
            'dataset build --caption' | \
            'dataset build --prompt' | \
            'dataset build --stylizer' | \
            'dataset build --animator' | \
            'dataset build --judge' | \
            'dataset build --min-seconds' | \
            'dataset build --max-seconds' | \
            'dataset build --min-side' | \
            'dataset build --device') return 0 ;;
    esac
    return 1
}

# The values, beginning with $3, of the option $2 of the command $1.
_osp_values() {
    case "$1 $2" in
        'generate --style' | 'generate -s') _osp_words "$3" '3d-rendering' 'chibi' 'cyberpunk' 'disney' 'fairy-tale' 'ghibli' 'gotham-noir' 'ink' 'lego' 'oil' 'pixel-art' 'vaporwave' 'watercolor' 'none' 'all' ;;
        'generate --output' | 'generate -o') _osp_files "$3" '*' ;;
        'generate --sampler') _osp_words "$3" 'euler' 'unipc' ;;
        'generate --lora' | 'generate -l') _osp_files "$3" '*.[sS][aA][fF][eE][tT][eE][nN][sS][oO][rR][sS]' ;;
        'generate --cache') _osp_words "$3" 'none' 'teacache' 'fbcache' 'magcache' ;;
        'generate --preview') _osp_words "$3" 'none' 'latent' 'contact' ;;
        'generate --from') _osp_files "$3" '*.[mM][pP]4' '*.[jJ][sS][oO][nN]' '*.[sS][aA][fF][eE][tT][eE][nN][sS][oO][rR][sS]' ;;
        'generate --from-file' | 'generate -F') _osp_files "$3" '*.[tT][xX][tT]' '*.[jJ][sS][oO][nN][lL]' '*.[cC][sS][vV]' ;;
        'generate --model' | 'generate -m') _osp_words "$3" 'osp-mini' 'osp-mini-live' 'flashi2v-1.3b' 'helios-14b-distilled' 'qwen2.5-vl-7b' 'uniworld-osp2-14b' 'wan2.1-i2v-14b-480p' 'wan2.1-i2v-14b-720p' 'wan2.1-t2v-1.3b' 'wan2.1-t2v-14b' ;;
        'generate --device') _osp_words "$3" 'auto' 'cpu' 'cuda' 'mps' ;;
        'generate --dtype') _osp_words "$3" 'auto' 'bfloat16' 'float16' 'float32' ;;
        'generate --offload') _osp_words "$3" 'auto' 'none' 'model' 'group' 'sequential' 'disk' ;;
        'generate --quant') _osp_words "$3" 'auto' 'none' 'fp8' 'int8' 'nf4' 'gguf' ;;
        'generate --attention') _osp_words "$3" 'auto' 'sdpa' 'flash' 'sage' ;;
        'generate --config') _osp_files "$3" '*.[tT][oO][mM][lL]' ;;
        'stylize --style' | 'stylize -s') _osp_words "$3" '3d-rendering' 'chibi' 'cyberpunk' 'disney' 'fairy-tale' 'ghibli' 'gotham-noir' 'ink' 'lego' 'oil' 'pixel-art' 'vaporwave' 'watercolor' 'none' 'all' ;;
        'stylize --output' | 'stylize -o') _osp_files "$3" '*' ;;
        'stylize --sampler') _osp_words "$3" 'euler' 'unipc' ;;
        'stylize --lora' | 'stylize -l') _osp_files "$3" '*.[sS][aA][fF][eE][tT][eE][nN][sS][oO][rR][sS]' ;;
        'stylize --cache') _osp_words "$3" 'none' 'teacache' 'fbcache' 'magcache' ;;
        'stylize --preview') _osp_words "$3" 'none' 'latent' 'contact' ;;
        'stylize --from') _osp_files "$3" '*.[mM][pP]4' '*.[jJ][sS][oO][nN]' '*.[sS][aA][fF][eE][tT][eE][nN][sS][oO][rR][sS]' ;;
        'stylize --from-file' | 'stylize -F') _osp_files "$3" '*.[tT][xX][tT]' '*.[jJ][sS][oO][nN][lL]' '*.[cC][sS][vV]' ;;
        'stylize --model' | 'stylize -m') _osp_words "$3" 'osp-mini' 'osp-mini-live' 'flashi2v-1.3b' 'helios-14b-distilled' 'qwen2.5-vl-7b' 'uniworld-osp2-14b' 'wan2.1-i2v-14b-480p' 'wan2.1-i2v-14b-720p' 'wan2.1-t2v-1.3b' 'wan2.1-t2v-14b' ;;
        'stylize --device') _osp_words "$3" 'auto' 'cpu' 'cuda' 'mps' ;;
        'stylize --dtype') _osp_words "$3" 'auto' 'bfloat16' 'float16' 'float32' ;;
        'stylize --offload') _osp_words "$3" 'auto' 'none' 'model' 'group' 'sequential' 'disk' ;;
        'stylize --quant') _osp_words "$3" 'auto' 'none' 'fp8' 'int8' 'nf4' 'gguf' ;;
        'stylize --attention') _osp_words "$3" 'auto' 'sdpa' 'flash' 'sage' ;;
        'stylize --config') _osp_files "$3" '*.[tT][oO][mM][lL]' ;;
        'extend --style' | 'extend -s') _osp_words "$3" '3d-rendering' 'chibi' 'cyberpunk' 'disney' 'fairy-tale' 'ghibli' 'gotham-noir' 'ink' 'lego' 'oil' 'pixel-art' 'vaporwave' 'watercolor' 'none' 'all' ;;
        'extend --output' | 'extend -o') _osp_files "$3" '*' ;;
        'extend --sink') _osp_words "$3" 'file' 'stdout' 'stdout:y4m' 'mpv' 'http' ;;
        'extend --from-file' | 'extend -F') _osp_files "$3" '*.[tT][xX][tT]' '*.[jJ][sS][oO][nN][lL]' '*.[cC][sS][vV]' ;;
        'extend --from') _osp_files "$3" '*.[mM][pP]4' '*.[jJ][sS][oO][nN]' '*.[sS][aA][fF][eE][tT][eE][nN][sS][oO][rR][sS]' ;;
        'extend --resume') _osp_files "$3" '*.[sS][aA][fF][eE][tT][eE][nN][sS][oO][rR][sS]' '*.[mM][pP]4' '*.[mM][kK][vV]' ;;
        'extend --sampler') _osp_words "$3" 'euler' 'unipc' ;;
        'extend --lora' | 'extend -l') _osp_files "$3" '*.[sS][aA][fF][eE][tT][eE][nN][sS][oO][rR][sS]' ;;
        'extend --cache') _osp_words "$3" 'none' 'teacache' 'fbcache' 'magcache' ;;
        'extend --model' | 'extend -m') _osp_words "$3" 'osp-mini' 'osp-mini-live' 'flashi2v-1.3b' 'helios-14b-distilled' 'qwen2.5-vl-7b' 'uniworld-osp2-14b' 'wan2.1-i2v-14b-480p' 'wan2.1-i2v-14b-720p' 'wan2.1-t2v-1.3b' 'wan2.1-t2v-14b' ;;
        'extend --device') _osp_words "$3" 'auto' 'cpu' 'cuda' 'mps' ;;
        'extend --dtype') _osp_words "$3" 'auto' 'bfloat16' 'float16' 'float32' ;;
        'extend --offload') _osp_words "$3" 'auto' 'none' 'model' 'group' 'sequential' 'disk' ;;
        'extend --quant') _osp_words "$3" 'auto' 'none' 'fp8' 'int8' 'nf4' 'gguf' ;;
        'extend --attention') _osp_words "$3" 'auto' 'sdpa' 'flash' 'sage' ;;
        'extend --config') _osp_files "$3" '*.[tT][oO][mM][lL]' ;;
        'train-lora --out' | 'train-lora -o') _osp_files "$3" '*' ;;
        'train-lora --model' | 'train-lora -m') _osp_words "$3" 'osp-mini' 'osp-mini-live' 'flashi2v-1.3b' 'helios-14b-distilled' 'qwen2.5-vl-7b' 'uniworld-osp2-14b' 'wan2.1-i2v-14b-480p' 'wan2.1-i2v-14b-720p' 'wan2.1-t2v-1.3b' 'wan2.1-t2v-14b' ;;
        'train-lora --mode') _osp_words "$3" 'flash' 't2v' 'inpaint' ;;
        'train-lora --condition') _osp_words "$3" 'auto' 'first' 'source' 'plain' ;;
        'train-lora --targets') _osp_words "$3" 'qkv-ffn' 'attn' 'all' 'paint' ;;
        'train-lora --optimizer') _osp_words "$3" 'adamw' 'adamw8bit' 'muon' ;;
        'train-lora --lr-schedule') _osp_words "$3" 'constant' 'linear' 'cosine' ;;
        'train-lora --timesteps') _osp_words "$3" 'uniform' 'logit-normal' 'logit-normal-shift' ;;
        'train-lora --device') _osp_words "$3" 'auto' 'cpu' 'cuda' 'mps' ;;
        'train-lora --dtype') _osp_words "$3" 'auto' 'bfloat16' 'float16' 'float32' ;;
        'train-lora --quant') _osp_words "$3" 'none' 'fp8' ;;
        'train-lora --sample-image') _osp_files "$3" '*.[pP][nN][gG]' '*.[jJ][pP][gG]' '*.[jJ][pP][eE][gG]' '*.[wW][eE][bB][pP]' '*.[gG][iI][fF]' '*.[bB][mM][pP]' '*.[tT][iI][fF]' '*.[tT][iI][fF][fF]' '*.[aA][vV][iI][fF]' '*.[jJ][pP]2' '*.[tT][gG][aA]' '*.[pP][pP][mM]' ;;
        'train-lora --save-format') _osp_words "$3" 'native' 'kohya' 'peft' ;;
        'train-lora --log') _osp_words "$3" 'jsonl' 'tensorboard' ;;
        'train-lora --cache-dir') _osp_files "$3" '*' ;;
        'train-lora --resume') _osp_words "$3" 'auto' 'never' ;;
        'train-lora --config') _osp_files "$3" '*.[tT][oO][mM][lL]' ;;
        'styles --gallery') _osp_files "$3" '*.[hH][tT][mM][lL]' ;;
        'styles --image') _osp_files "$3" '*.[pP][nN][gG]' '*.[jJ][pP][gG]' '*.[jJ][pP][eE][gG]' '*.[wW][eE][bB][pP]' '*.[gG][iI][fF]' '*.[bB][mM][pP]' '*.[tT][iI][fF]' '*.[tT][iI][fF][fF]' '*.[aA][vV][iI][fF]' '*.[jJ][pP]2' '*.[tT][gG][aA]' '*.[pP][pP][mM]' ;;
        'download --local') _osp_files "$3" '*' ;;
        'bench --photos') _osp_files "$3" '*' ;;
        'bench --out') _osp_files "$3" '*' ;;
        'bench --weights') _osp_files "$3" '*' ;;
        'bench --model' | 'bench -m') _osp_words "$3" 'osp-mini' 'osp-mini-live' 'flashi2v-1.3b' 'helios-14b-distilled' 'qwen2.5-vl-7b' 'uniworld-osp2-14b' 'wan2.1-i2v-14b-480p' 'wan2.1-i2v-14b-720p' 'wan2.1-t2v-1.3b' 'wan2.1-t2v-14b' ;;
        'bench --style' | 'bench -s') _osp_words "$3" '3d-rendering' 'chibi' 'cyberpunk' 'disney' 'fairy-tale' 'ghibli' 'gotham-noir' 'ink' 'lego' 'oil' 'pixel-art' 'vaporwave' 'watercolor' 'none' 'all' ;;
        'models inspect --model' | 'models inspect -m') _osp_words "$3" 'osp-mini' 'osp-mini-live' 'flashi2v-1.3b' 'helios-14b-distilled' 'qwen2.5-vl-7b' 'uniworld-osp2-14b' 'wan2.1-i2v-14b-480p' 'wan2.1-i2v-14b-720p' 'wan2.1-t2v-1.3b' 'wan2.1-t2v-14b' ;;
        'dataset check --model' | 'dataset check -m') _osp_words "$3" 'osp-mini' 'osp-mini-live' 'flashi2v-1.3b' 'helios-14b-distilled' 'qwen2.5-vl-7b' 'uniworld-osp2-14b' 'wan2.1-i2v-14b-480p' 'wan2.1-i2v-14b-720p' 'wan2.1-t2v-1.3b' 'wan2.1-t2v-14b' ;;
        'dataset check --mode') _osp_words "$3" 'flash' 't2v' 'inpaint' ;;
        'dataset check --condition') _osp_words "$3" 'auto' 'first' 'source' 'plain' ;;
        'dataset check --report') _osp_files "$3" '*.[jJ][sS][oO][nN]' ;;
        'dataset build --style' | 'dataset build -s') _osp_words "$3" '3d-rendering' 'chibi' 'cyberpunk' 'disney' 'fairy-tale' 'ghibli' 'gotham-noir' 'ink' 'lego' 'oil' 'pixel-art' 'vaporwave' 'watercolor' 'none' 'all' ;;
        'dataset build --output' | 'dataset build -o') _osp_files "$3" '*' ;;
        'dataset build --stylizer') _osp_words "$3" 'procedural' 'qwen-image-edit' 'flux-kontext' 'flux2' 'flux2-klein' 'longcat-image-edit' ;;
        'dataset build --animator') _osp_words "$3" 'procedural' 'osp-mini' 'osp-mini-live' 'flashi2v-1.3b' 'uniworld-osp2-14b' 'wan2.1-i2v-14b-480p' 'wan2.1-i2v-14b-720p' ;;
        'dataset build --judge') _osp_files "$3" '*' ;;
        'dataset build --device') _osp_words "$3" 'auto' 'cpu' 'cuda' 'mps' ;;
    esac
}

# The options, beginning with $2, of the command $1.
_osp_options() {
    case $1 in
        '') _osp_words "$2" '--version' '-V' '--help' '-h' ;;
        'generate') _osp_words "$2" '--style' '-s' '--output' '-o' '--overwrite' '-y' '--seed' '--count' '-c' '--negative-prompt' '-n' '--text' '--size' '--frames' '-f' '--seconds' '-t' '--fps' '--steps' '--cfg' '-g' '--cutoff' '--shift' '--sampler' '--lora' '-l' '--cache' '--cache-start' '--preview' '--pick' '--from' '--from-file' '-F' '--model' '-m' '--device' '--dtype' '--offload' '--quant' '--attention' '--vae-tiling' '--no-vae-tiling' '--compile' '--no-compile' '--gpus' '--max-vram' '--max-ram' '--offline' '--metadata' '--no-metadata' '--config' '--print-config' '--dry-run' '--json' '--quiet' '-q' '--verbose' '-v' '--debug' '--help' '-h' ;;
        'stylize') _osp_words "$2" '--style' '-s' '--output' '-o' '--overwrite' '-y' '--seed' '--count' '-c' '--strength' '--negative-prompt' '-n' '--size' '--frames' '-f' '--seconds' '-t' '--fps' '--steps' '--cfg' '-g' '--cutoff' '--shift' '--sampler' '--lora' '-l' '--cache' '--cache-start' '--preview' '--pick' '--from' '--from-file' '-F' '--model' '-m' '--device' '--dtype' '--offload' '--quant' '--attention' '--vae-tiling' '--no-vae-tiling' '--compile' '--no-compile' '--gpus' '--max-vram' '--max-ram' '--offline' '--metadata' '--no-metadata' '--config' '--print-config' '--dry-run' '--json' '--quiet' '-q' '--verbose' '-v' '--debug' '--help' '-h' ;;
        'extend') _osp_words "$2" '--realtime' '--style' '-s' '--text' '--output' '-o' '--sink' '--overwrite' '-y' '--seconds' '-t' '--frames' '-f' '--fps' '--from-file' '-F' '--listen' '--no-listen' '--from' '--resume' '--seed' '--negative-prompt' '-n' '--size' '--steps' '--cfg' '-g' '--cutoff' '--shift' '--sampler' '--context' '--latent-frames' '--stages' '--anchor-color' '--lora' '-l' '--cache' '--cache-start' '--model' '-m' '--device' '--dtype' '--offload' '--quant' '--attention' '--compile' '--no-compile' '--max-vram' '--max-ram' '--offline' '--metadata' '--no-metadata' '--config' '--print-config' '--dry-run' '--json' '--quiet' '-q' '--verbose' '-v' '--debug' '--help' '-h' ;;
        'train-lora') _osp_words "$2" '--out' '-o' '--model' '-m' '--mode' '--condition' '--full' '--no-full' '--train-adapter' '--no-train-adapter' '--trigger' '--rank' '--alpha' '--targets' '--size' '--frames' '-f' '--fps' '--stride' '--bucket' '--no-bucket' '--windows' '--latent-frames' '--epochs' '--max-steps' '--batch-size' '--accumulate' '--lr' '--weight-decay' '--betas' '--eps' '--max-grad-norm' '--optimizer' '--lr-schedule' '--warmup' '--ema' '--seed' '--caption-drop' '--cutoff' '--timesteps' '--sigma-shift' '--sigma-power' '--device' '--dtype' '--quant' '--gpus' '--context-parallel' '--max-vram' '--max-ram' '--grad-checkpoint' '--no-grad-checkpoint' '--swap-blocks' '--offload-activations' '--no-offload-activations' '--save-every' '--keep' '--sample-every' '--sample-prompt' '--sample-image' '--save-format' '--log' '--cache-dir' '--title' '--resume' '--allow-empty' '--allow-upscale' '--skip-invalid' '--validate-only' '--cache-only' '--overwrite' '-y' '--offline' '--config' '--print-config' '--dry-run' '--json' '--quiet' '-q' '--verbose' '-v' '--debug' '--help' '-h' ;;
        'styles') _osp_words "$2" '--gallery' '--image' '--overwrite' '-y' '--json' '--quiet' '-q' '--debug' '--help' '-h' ;;
        'download') _osp_words "$2" '--list' '--dry-run' '--verify' '--local' '--revision' '--include' '--exclude' '--mirror' '--jobs' '--limit-rate' '--offline' '--overwrite' '-y' '--json' '--quiet' '-q' '--debug' '--help' '-h' ;;
        'doctor') _osp_words "$2" '--json' '--debug' '--help' '-h' ;;
        'bench') _osp_words "$2" '--quick' '--photos' '--out' '--weights' '--model' '-m' '--caches' '--steps' '--style' '-s' '--json' '--quiet' '-q' '--debug' '--help' '-h' ;;
        'completion') _osp_words "$2" '--debug' '--help' '-h' ;;
        'schema') _osp_words "$2" '--debug' '--help' '-h' ;;
        'models') _osp_words "$2" '--json' '--debug' '--help' '-h' ;;
        'models inspect') _osp_words "$2" '--model' '-m' '--json' '--debug' '--help' '-h' ;;
        'dataset') _osp_words "$2" '--help' '-h' ;;
        'dataset check') _osp_words "$2" '--model' '-m' '--mode' '--condition' '--size' '--frames' '-f' '--fps' '--stride' '--windows' '--seed' '--no-bucket' '--allow-empty' '--allow-upscale' '--report' '--json' '--quiet' '-q' '--debug' '--help' '-h' ;;
        'dataset build') _osp_words "$2" '--style' '-s' '--output' '-o' '--frames' '-f' '--fps' '--size' '--count' '-c' '--seed' '--caption' '--prompt' '--stylizer' '--animator' '--judge' '--min-seconds' '--max-seconds' '--min-side' '--allow-cuts' '--no-gates' '--device' '--overwrite' '-y' '--dry-run' '--json' '--quiet' '-q' '--debug' '--help' '-h' ;;
    esac
}

# Whether there is a command $2 inside the command $1.
_osp_has_inside() {
    case "$1 $2" in
        'models inspect' | 'dataset check' | 'dataset build') return 0 ;;
    esac
    return 1
}

# The values, beginning with $3, of argument number $2 of the command $1.
_osp_arguments() {
    case "$1 $2" in
        'generate 0') _osp_files "$3" '*.[pP][nN][gG]' '*.[jJ][pP][gG]' '*.[jJ][pP][eE][gG]' '*.[wW][eE][bB][pP]' '*.[gG][iI][fF]' '*.[bB][mM][pP]' '*.[tT][iI][fF]' '*.[tT][iI][fF][fF]' '*.[aA][vV][iI][fF]' '*.[jJ][pP]2' '*.[tT][gG][aA]' '*.[pP][pP][mM]' ;;
        'stylize 0') _osp_files "$3" '*.[pP][nN][gG]' '*.[jJ][pP][gG]' '*.[jJ][pP][eE][gG]' '*.[wW][eE][bB][pP]' '*.[gG][iI][fF]' '*.[bB][mM][pP]' '*.[tT][iI][fF]' '*.[tT][iI][fF][fF]' '*.[aA][vV][iI][fF]' '*.[jJ][pP]2' '*.[tT][gG][aA]' '*.[pP][pP][mM]' '*.[mM][pP]4' '*.[mM][oO][vV]' '*.[mM][kK][vV]' '*.[wW][eE][bB][mM]' '*.[aA][vV][iI]' '*.[mM]4[vV]' '*.[mM][pP][gG]' '*.[tT][sS]' ;;
        'extend 0') _osp_files "$3" '*.[pP][nN][gG]' '*.[jJ][pP][gG]' '*.[jJ][pP][eE][gG]' '*.[wW][eE][bB][pP]' '*.[gG][iI][fF]' '*.[bB][mM][pP]' '*.[tT][iI][fF]' '*.[tT][iI][fF][fF]' '*.[aA][vV][iI][fF]' '*.[jJ][pP]2' '*.[tT][gG][aA]' '*.[pP][pP][mM]' '*.[mM][pP]4' '*.[mM][oO][vV]' '*.[mM][kK][vV]' '*.[wW][eE][bB][mM]' '*.[aA][vV][iI]' '*.[mM]4[vV]' '*.[mM][pP][gG]' '*.[tT][sS]' ;;
        'train-lora 0') _osp_files "$3" '*.[jJ][sS][oO][nN][lL]' '*.[jJ][sS][oO][nN]' '*.[cC][sS][vV]' '*.[tT][oO][mM][lL]' '*.[tT][xX][tT]' ;;
        'styles 0') _osp_words "$3" '3d-rendering' 'chibi' 'cyberpunk' 'disney' 'fairy-tale' 'ghibli' 'gotham-noir' 'ink' 'lego' 'oil' 'pixel-art' 'vaporwave' 'watercolor' ;;
        'download 0') _osp_words "$3" 'osp-mini' 'osp-mini-live' 'flashi2v-1.3b' 'helios-14b-distilled' 'qwen2.5-vl-7b' 'uniworld-osp2-14b' 'wan2.1-i2v-14b-480p' 'wan2.1-i2v-14b-720p' 'wan2.1-t2v-1.3b' 'wan2.1-t2v-14b' ;;
        'bench 0') _osp_words "$3" 'mini' 'cache' ;;
        'completion 0') _osp_words "$3" 'bash' 'zsh' 'fish' 'powershell' ;;
        'schema 0') _osp_words "$3" 'events' 'recipe' 'doctor' ;;
        'models inspect 0') _osp_files "$3" '*.[sS][aA][fF][eE][tT][eE][nN][sS][oO][rR][sS]' ;;
        'dataset check 0') _osp_files "$3" '*.[jJ][sS][oO][nN][lL]' '*.[jJ][sS][oO][nN]' '*.[cC][sS][vV]' '*.[tT][oO][mM][lL]' '*.[tT][xX][tT]' ;;
        'dataset build 0') _osp_files "$3" '*.[pP][nN][gG]' '*.[jJ][pP][gG]' '*.[jJ][pP][eE][gG]' '*.[wW][eE][bB][pP]' '*.[gG][iI][fF]' '*.[bB][mM][pP]' '*.[tT][iI][fF]' '*.[tT][iI][fF][fF]' '*.[aA][vV][iI][fF]' '*.[jJ][pP]2' '*.[tT][gG][aA]' '*.[pP][pP][mM]' '*.[mM][pP]4' '*.[mM][oO][vV]' '*.[mM][kK][vV]' '*.[wW][eE][bB][mM]' '*.[aA][vV][iI]' '*.[mM]4[vV]' '*.[mM][pP][gG]' '*.[tT][sS]' ;;
        ' 0') _osp_words "$3" 'generate' 'stylize' 'extend' 'train-lora' 'styles' 'download' 'doctor' 'bench' 'completion' 'schema' 'models' 'dataset' ;;
        'models 0') _osp_words "$3" 'inspect' ;;
        'dataset 0') _osp_words "$3" 'check' 'build' ;;
    esac
}

_osp() {
    local IFS=$' \t\n' raw=${COMP_WORDS[COMP_CWORD]} index word glue= cur value before= add=
    local command= waiting= ended= place=0
    local -a words
    words=()
    COMPREPLY=()
    # Bash takes words apart at = and :, here they are put together again.
    for ((index = 1; index <= COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if [[ ${#words[@]} -gt 0 && -n $word && (-n $glue || $word =~ ^[:=]+$) ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words[${#words[@]}]=$word
        fi
        if [[ $word =~ ^[:=]+$ ]]; then glue=1; else glue=; fi
    done
    cur=${words[${#words[@]} - 1]}
    for word in "${words[@]:0:${#words[@]}-1}"; do
        if [[ -n $waiting ]]; then
            waiting=
        elif [[ -z $ended && $word == -- ]]; then
            ended=1
        elif [[ -z $ended && $word == -?* ]]; then
            if _osp_takes_value "$command" "$word"; then waiting=$word; fi
        elif [[ -z $command ]]; then
            command=$word
        elif [[ $place == 0 ]] && _osp_has_inside "$command" "$word"; then
            command="$command $word"
        else
            place=$((place + 1))
        fi
    done
    value=$cur
    if [[ -z $waiting && -z $ended && $cur == --*=* ]]; then
        waiting=${cur%%=*}
        value=${cur#*=}
        if [[ $raw == "$cur" ]]; then add=$waiting=; fi
    fi
    # Readline replaces only what follows the last = or :.
    if [[ $raw =~ ^[:=]+$ ]]; then
        before=$value
    elif [[ -z $add ]]; then
        before=${value%"$raw"}
    fi
    if [[ -n $waiting ]]; then
        _osp_values "$command" "$waiting" "$value"
    elif [[ -z $ended && $cur == -* ]]; then
        _osp_options "$command" "$cur"
    else
        _osp_arguments "$command" "$place" "$value"
    fi
    for index in "${!COMPREPLY[@]}"; do
        COMPREPLY[index]=$add${COMPREPLY[index]#"$before"}
    done
}

complete -F _osp osp
